"""What the two diffusion tasks share: a card's plan, its sampling loop, and the account of how it was run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card
from pacs_node.infer.providers import Settings, threads
from pacs_node.infer.results import Progress
from pacs_node.infer.sampling import loop
from pacs_node.infer.sampling.loop import Lane, Value
from pacs_node.infer.sampling.noise import Noise
from pacs_node.infer.sampling.plans import plan
from pacs_node.infer.sampling.rules import trouble
from pacs_node.infer.session import Session, open_beside, open_shallow
from pacs_node.infer.tables import asked_for

Array = NDArray[np.float32]


class Diffusion:
    """The sampling loop of one card's denoiser. ``denoiser(sample, condition, timestep) -> prediction``.

    Where the card has a shallow graph, every other prediction, as far as ``alternate`` lets it, is made by
    the denoiser's first level alone, from what the evaluation before it found below that level: what lies
    deep changes little between neighbouring steps (DeepCache; Ma, Fang and Wang, CVPR 2024, arXiv
    2312.00858).
    """

    def __init__(self, card: Card, denoiser: Session, settings: Settings) -> None:
        """Raises ModelError if the sampler or the number of steps asked for is none that the model can do."""
        if card.diffusion is None or card.sampler is None:
            raise ModelError(f"{card.folder}: the card has no [diffusion] or [sampler]. Add them.")
        self.table = card.diffusion
        self.sampler = asked_for(card.sampler, settings.sampler, settings.steps)
        if found := trouble(self.table, self.sampler, self.sampler.steps):
            raise ModelError(f"{card.name}: {found}")
        self.plan = plan(Noise(self.table), self.sampler, self.sampler.steps)
        self.denoiser = denoiser
        alternating = alternate([step.level.told for step in self.plan], self.table.deep_reach or 0.0)
        self.shallow = open_shallow(card, denoiser, settings) if any(alternating) else None
        self._by_shallow = alternating if self.shallow else [False] * len(alternating)
        self._update = open_beside(denoiser, loop.UPDATE, loop.UPDATE_GRAPH, settings)

    @property
    def evaluations(self) -> int:
        """How often the denoiser is asked, and progress is told."""
        return len(self.plan)

    def sample(self, condition: Array, seed: int, count: Count, lanes: Sequence[Lane] | None = None) -> Array:
        """Clean samples given ``condition`` (N, C, h, w), of its shape; the same for the same ``seed``.

        ``lanes``: how each of the N is limited and guided, if not as the card says for all. The state of the
        loop stays on the denoiser's device. Raises ModelError if the denoiser fails or its numbers are not
        finite.
        """
        lanes = [Lane(self.table.clip_start)] * len(condition) if lanes is None else lanes
        given = self.denoiser.put(condition, "condition")
        by_shallow = iter(self._by_shallow)
        deep: Value = None

        def network(x: Value, told: float) -> Value:
            nonlocal deep
            inputs = {
                "sample": x,
                "condition": given,
                "timestep": np.full(len(condition), told, np.float32),
            }
            if next(by_shallow) and self.shallow is not None:
                return self.shallow.bound(**inputs, deep=deep)["prediction"]
            outputs = self.denoiser.bound(**inputs)
            deep = outputs.get("deep")
            return outputs["prediction"]

        sampled = loop.walk(
            self.plan,
            self.table,
            network,
            self._update.bound,
            condition.shape[1:],
            np.random.Generator(np.random.PCG64(seed)),
            lanes,
            count,
        )
        # In the denoiser's name: the update makes of finite predictions nothing but finite ones.
        return self.denoiser.fetch("prediction", sampled)

    def parameters(self, seed: int) -> dict[str, Any]:
        """Sampler, steps, seed, and what else decides the samples, for the result."""
        chosen: dict[str, Any] = {"sampler": self.sampler.name, "steps": self.sampler.steps, "seed": seed}
        if shallow := sum(self._by_shallow):
            chosen["shallow_evaluations"] = shallow
        return chosen | self.sampler.details()


def alternate(times: Sequence[float], reach: float) -> list[bool]:
    """Of evaluations at these time steps, which are made from what the one before found deep in the network.

    At most every other, none that is more than ``reach`` from the one before, and none of the first fifth,
    where the point is all but noise, which magnifies an error. Measured with DPM-Solver++ on a network that
    predicts noise: 54.2 dB from the whole network's image in 20 steps, 61.4 in 50; with every other of all,
    44.5 and 50.4.
    """
    found: list[bool] = []
    for i, time in enumerate(times):
        early = i < max(1, len(times) / 5)
        found.append(not early and not found[-1] and abs(time - times[i - 1]) <= reach)
    return found


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
