"""What the two diffusion tasks share: a card's plan, its sampling loop, and the account of how it was run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import ModelError
from pacs_node.infer import samplers
from pacs_node.infer.cards import Card
from pacs_node.infer.providers import Settings, threads
from pacs_node.infer.results import Progress
from pacs_node.infer.session import Session

Array = NDArray[np.float32]


class Diffusion:
    """The sampling loop of one card's denoiser. ``denoiser(sample, condition, timestep) -> prediction``."""

    def __init__(self, card: Card, denoiser: Session, settings: Settings) -> None:
        if card.diffusion is None or card.sampler is None:
            raise ModelError(f"{card.folder}: the card has no [diffusion] or [sampler]. Add them.")
        self.noise, self.sampler, self.denoiser = card.diffusion, card.sampler, denoiser
        self.steps = settings.steps or self.sampler.steps
        if self.steps > self.noise.train_steps:
            raise ModelError(
                f"{card.name}: {self.steps} sampling steps are asked for, but the model was trained with "
                f"{self.noise.train_steps}. Ask for fewer."
            )
        levels = samplers.alpha_bar(
            self.noise.schedule, self.noise.train_steps, self.noise.beta_start, self.noise.beta_end
        )
        self.plan = samplers.plan(
            levels, self.sampler.name, self.steps, self.sampler.eta, self.sampler.spacing
        )

    def sample(self, condition: Array, seed: int, count: Count) -> Array:
        """A clean sample given ``condition`` (N, C, h, w), of its shape; the same for the same ``seed``."""

        def network(x: Array, t: int) -> Array:
            timestep = np.full(len(x), t, np.float32)
            return self.denoiser.run(sample=x, condition=condition, timestep=timestep)["prediction"]

        return samplers.sample(
            network,
            condition.shape,
            self.plan,
            self.noise.prediction,
            np.random.Generator(np.random.PCG64(seed)),
            limit=self._limit if self.noise.clip_start is not None else None,
            on_step=count,
        )

    def _limit(self, t: int) -> float:
        return (self.noise.clip_start or 0.0) + self.noise.clip_slope * t

    def parameters(self, seed: int) -> dict[str, Any]:
        """Sampler, steps, eta, spacing and seed, for the result."""
        return {
            "sampler": self.sampler.name,
            "steps": self.steps,
            "eta": self.sampler.eta if self.sampler.name == "ddim" else 1.0,
            "spacing": self.sampler.spacing,
            "seed": seed,
        }


class Count:
    """Counts steps towards ``total`` and tells ``progress``, if there is one."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        """One step is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def run_parameters(card: Card, sessions: Iterable[Session], settings: Settings) -> dict[str, Any]:
    """How the sessions of one model ran: provider, precision, why, threads, model size and all warnings."""
    chosen = [session.choice for session in sessions]
    return {
        "provider": ", ".join(dict.fromkeys(c.provider for c in chosen)),
        "precision": ", ".join(dict.fromkeys(c.precision for c in chosen)),
        "provider_reason": chosen[-1].reason,
        "threads": threads(settings),
        "model_size": card.input.size,
        "warnings": list(dict.fromkeys(warning for c in chosen for warning in c.warnings)),
    }


def encode(square: Array, card: Card) -> Array:
    """(S, S) in [0, 1] -> (1, 1, S, S) in the card's input range."""
    low, high = card.input.range
    return np.asarray(low + (high - low) * square, np.float32)[np.newaxis, np.newaxis]


def decode_difference(difference: Array, card: Card) -> Array:
    """(1, 1, S, S), a difference of two images in the card's range -> (S, S), a difference in [-1, 1]."""
    low, high = card.input.range
    return np.asarray(difference[0, 0] / (high - low), np.float32)
