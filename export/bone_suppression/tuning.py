"""Learning on: a model's denoiser from a site's pairs, half and half with phantoms and what else is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from export.bone_suppression.data import Squares, levelled
from export.bone_suppression.train_denoiser import DenoiserTraining
from export.bone_suppression.weights import Networks
from export.devices import HERE, Place
from pacs_node.infer.cards import Card


@dataclass(frozen=True)
class Plan:
    """How long and how strongly the denoiser learns on.

    ``minutes`` end it before ``iterations`` do. ``crop``: side of the parts that are learnt from, in pixels;
    0 for whole images, since what a site's tone does to an image is seen in all of it. ``as_they_are``:
    share of the samples that keep their bones and tone.
    """

    minutes: float = 10.0
    iterations: int = 1000
    rate: float = 3e-4
    batch: int = 1
    crop: int = 0
    as_they_are: float = 0.5


def mixed(site: Sequence[Squares], replay: Sequence[Squares]) -> list[Squares]:
    """Both, repeated until there are as many of one as of the other."""
    most = max(len(site), len(replay))
    return [some[i % len(some)] for some in (site, replay) if some for i in range(most)]


class Tuning(DenoiserTraining):
    """The denoiser's training, from the model's own weights."""

    def __init__(
        self,
        card: Card,
        found: Networks,
        site: Sequence[Squares],
        replay: Sequence[Squares],
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
            average=0.99,
            crop=min(plan.crop, card.input.size),
            varied=True,
            as_they_are=plan.as_they_are,
            masked=False,
            quantised=found.quantised,
        )
        table = card.diffusion.model_dump(exclude_none=True)
        system = replace(found.system, size=card.input.size, diffusion=table, denoiser=recipe)
        super().__init__(system, mixed(levelled(site), replay), found.autoencoder, place=place)
        self.trainer.start_from(found.denoiser.state_dict(), card.folder)


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
