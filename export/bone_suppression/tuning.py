"""Learning on: a model's denoiser from a site's pairs, half and half with phantoms and what else is given.

The autoencoder stays as it is, so each look of a pair (as it is, or with other bones and another tone) is
encoded once and serves every fold: what is left of an iteration is the denoiser's own work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from export.bone_suppression.data import Squares, draw, vary
from export.bone_suppression.reading import LEVELS
from export.bone_suppression.train_denoiser import DenoiserTraining
from export.bone_suppression.weights import Networks
from export.devices import HERE, Place
from pacs_node.infer.cards import Card


@dataclass(frozen=True)
class Plan:
    """How long and how strongly the denoiser learns on.

    ``minutes`` end it before ``iterations`` do. ``as_they_are``: share of a site's looks that keep its bones
    and tone (mirrored or not), the others are varied as in training. ``crop``: side of the
    parts that are learnt from, in pixels. ``site_looks``, ``replay_looks``: of each pair.
    """

    minutes: float = 10.0
    iterations: int = 250
    rate: float = 3e-4
    batch: int = 8
    crop: int = 256
    as_they_are: float = 0.5
    site_looks: int = 12
    replay_looks: int = 2


def looks(pair: Squares, count: int, as_they_are: float, seed: int = 0) -> list[Squares]:
    """``count`` looks of a pair, of its own patient and name."""
    rng = np.random.default_rng((seed, count))
    planes = [plane.astype(np.float32) / LEVELS for plane in pair.planes[:2]]
    found = []
    for number in range(count):
        if number < as_they_are * count:
            shown = [plane[:, ::-1] for plane in planes] if number % 2 else planes
        else:
            shown = vary(planes, rng)
        stack = np.stack([np.round(np.clip(plane, 0, 1) * LEVELS).astype(np.uint16) for plane in shown])
        found.append(Squares(f"{pair.name}#{number}", pair.patient, stack))
    return found


def mixed(site: Sequence[Squares], replay: Sequence[Squares]) -> list[Squares]:
    """Both, repeated until there are as many of one as of the other."""
    most = max(len(site), len(replay))
    return [some[i % len(some)] for some in (site, replay) if some for i in range(most)]


class Tuning(DenoiserTraining):
    """The denoiser's training, from the model's own weights.

    ``latents``: of each look by its name, filled as looks are first met; shared between trainings.
    """

    def __init__(
        self,
        card: Card,
        found: Networks,
        looks_: Sequence[Squares],
        latents: dict[str, list[Tensor]],
        plan: Plan,
        place: Place = HERE,
    ) -> None:
        assert card.diffusion is not None
        recipe = replace(
            found.system.denoiser,
            batch=plan.batch,
            accumulate=1,
            rate=plan.rate,
            warm_up=10,
            milestones=(),
            clip=1.0,
            average=0.98,
            crop=min(plan.crop, card.input.size),
            varied=False,
            masked=False,
            quantised=found.quantised,
            requantised=found.requantised,
        )
        table = card.diffusion.model_dump(exclude_none=True)
        system = replace(found.system, size=card.input.size, diffusion=table, denoiser=recipe)
        super().__init__(system, looks_, found.autoencoder, place=place)
        self.by_name = latents
        self.trainer.start_from(found.denoiser.state_dict(), card.folder)

    def sample(self, iteration: int, index: int) -> tuple[int, list[Tensor], int, Tensor]:
        """As in training, but with a part of the two latents in place of the images."""
        number = self.order(iteration, index)
        if number not in self.latents:
            squares = self.items[number].squares
            if squares.name not in self.by_name:
                images = draw(squares, np.random.default_rng(0))
                latents = [self.encode(image[None].to(self.place.device))[0] for image in images]
                self.by_name[squares.name] = [z.cpu() * self.diffusion.latent_scale for z in latents]
            self.latents[number] = self.by_name[squares.name]
        _, _, level, noise = super().sample(iteration, index)
        whole = self.latents[number][0].shape[-1]
        rng = np.random.default_rng((self.recipe.seed, iteration, index, 2))
        top, left = rng.integers(0, whole - self.side + 1, size=2)
        window = np.s_[:, top : top + self.side, left : left + self.side]
        return number, [latent[window] for latent in self.latents[number]], level, noise

    def pair_of_latents(self, number: int, images: list[Tensor]) -> list[Tensor]:
        """What ``sample`` gave."""
        return [latent.to(self.place.device) for latent in images]


def tune(training: Tuning, plan: Plan, tell: Callable[[str], None] = print) -> Mapping[str, Tensor]:
    """The averaged weights after ``plan``'s iterations, or minutes if they end earlier."""
    start = time.monotonic()
    losses: list[float] = []
    while training.trainer.iteration < plan.iterations and time.monotonic() - start < 60 * plan.minutes:
        losses.append(training.step()["loss"])
        if training.trainer.iteration % 50 == 0:
            seconds = (time.monotonic() - start) / len(losses)
            tell(
                f"   {training.trainer.iteration:4d}/{plan.iterations}  loss {np.mean(losses[-50:]):.4f}  "
                f"{seconds:.2f} s each"
            )
    training.feed.close()
    weights: Mapping[str, Tensor] = training.trainer.average.state_dict()
    return weights
