"""What both stages share. One recipe for every system: first the autoencoder, then the denoiser.

Which samples an iteration takes, how they are varied and which noise they get follows from the seed, the
iteration and the sample's number in the batch: the same on one device or several, stopped or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from export.bone_suppression.data import Example, Squares, draw
from export.bone_suppression.losses import Discriminator
from export.bone_suppression.recipes import AutoencoderRecipe, Recipe, System, kept
from export.bone_suppression.unet import UNet
from export.bone_suppression.vqgan import MLVQGAN
from export.devices import Place
from export.training import Feed, Trainer, TrainingError, averaged, run, say

AUTOENCODER, DENOISER = "autoencoder.pt", "denoiser.pt"


@dataclass(frozen=True)
class Item:
    """What one sample shows: a pair (or a radiograph alone), masked by its lungs or not; which ``plane``
    alone, if not both.
    """

    squares: Squares
    masked: bool = False
    plane: int | None = None

    def draw(self, recipe: Recipe, rng: np.random.Generator) -> Example:
        """An example of it, as the recipe wants it."""
        return draw(
            self.squares,
            rng,
            crop=recipe.crop,
            varied=recipe.varied,
            as_they_are=recipe.as_they_are,
            masked=self.masked,
        )


def items(recipe: Recipe, pairs: Sequence[Squares]) -> list[Item]:
    """Every pair, and once more masked if the recipe says so. Raises TrainingError if none has lungs."""
    found = [Item(s) for s in pairs]
    if recipe.masked:
        with_lungs = [s for s in pairs if len(s.planes) == 3]
        if not with_lungs:
            raise TrainingError(
                "the recipe wants radiographs masked by their lungs, and no pair has a lung mask; put "
                "masks in lungs/ beside cxr/, add phantoms, or set masked=false"
            )
        found += [Item(s, masked=True) for s in with_lungs]
    return found


def plan(recipe: Recipe, count: int) -> tuple[int, list[tuple[int, float]]]:
    """Iterations of all epochs over ``count`` samples, and the milestones as (iteration, rate)."""
    epoch = max(1, count // recipe.batch)
    steps = [
        (after * epoch, recipe.rate * recipe.factor**number)
        for number, after in enumerate(recipe.milestones, 1)
    ]
    return recipe.epochs * epoch, steps


def trainer(
    system: System,
    stage: str,
    recipe: Recipe,
    make: Callable[[], nn.Module],
    count: int,
    place: Place,
    diffusion: dict[str, Any] | None = None,
    **more: Any,
) -> Trainer:
    """The recipe's trainer of one stage over ``count`` samples an epoch."""
    settings = {"system": system.name, "network": stage, **kept(recipe)}
    if diffusion:
        settings["diffusion"] = diffusion
    if isinstance(recipe, AutoencoderRecipe) and recipe.adversarial:
        width = recipe.opponent_width
        more |= {"opponent": lambda: Discriminator(width), "opponent_rate": recipe.opponent_rate}
    return Trainer(
        make,
        rate=recipe.rate,
        warm_up=recipe.warm_up,
        decay=recipe.decay,
        epsilon=recipe.epsilon,
        clip=recipe.clip or None,
        average=recipe.average or None,
        seed=recipe.seed,
        milestones=plan(recipe, count)[1],
        settings=settings,
        fixed=("network", "diffusion", "quantised"),
        place=place,
        **more,
    )


class Training(Protocol):
    """A stage: its trainer, its samples, and its step."""

    recipe: Any
    items: Sequence[Item]
    trainer: Trainer
    place: Place
    feed: Feed[Any]

    def step(self) -> dict[str, float]:
        """One update; what to tell of it."""
        ...


def add(report: dict[str, float], values: dict[str, float]) -> None:
    """Sums by name."""
    for name, value in values.items():
        report[name] = report.get(name, 0.0) + value


def load_autoencoder(system: System, path: Path) -> nn.Module:
    """The autoencoder of a checkpoint, averaged if it was; its shape must be the system's."""
    return _load(MLVQGAN, system.autoencoder_shape, path)


def load_denoiser(system: System, path: Path) -> nn.Module:
    """The denoiser of a checkpoint, averaged if it was; its shape must be the system's."""
    return _load(UNet, system.denoiser_shape, path)


def merged(networks: Sequence[nn.Module]) -> nn.Module:
    """The first, given the mean of all their weights.

    Of networks that learnt on from one another, or from the same one, it does what each does best, and as
    often better than all of them (model soups: Wortsman et al., arXiv 2203.05482).
    """
    weights = [network.state_dict() for network in networks]
    networks[0].load_state_dict(
        {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}
    )
    return networks[0]


def _load(make: Callable[[Any], nn.Module], shape: Any, path: Path) -> nn.Module:
    found, weights = averaged(path, type(shape))
    if found != shape:
        raise TrainingError(f"{path} holds {found}, not {shape}; choose its system by --shape")
    model = make(shape)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def train(
    training: Training,
    checkpoint: Path,
    *,
    minutes: float,
    iterations: int | None = None,
    look: Callable[[], None] | None = None,
    look_every: int | None = None,
    every: int = 20,
) -> None:
    """Trains for ``minutes``, to the last epoch or to ``iterations``, whichever comes first; goes on from
    ``checkpoint`` if it is there.
    """
    recipe, count = training.recipe, len(training.items)
    last = plan(recipe, count)[0]
    epoch = max(1, count // recipe.batch)
    say(
        training.place,
        f"{count} samples, {epoch} iterations an epoch, {last} in all; {training.place.device}, "
        f"{str(training.place.precision).removeprefix('torch.')}, {training.place.world} processes",
    )
    try:
        run(
            training.trainer,
            training.step,
            checkpoint,
            minutes=minutes,
            iterations=min(last, iterations or last),
            every=every,
            look=look,
            look_every=max(1, round(recipe.look * epoch)) if look_every is None else look_every,
        )
    finally:
        training.feed.close()
