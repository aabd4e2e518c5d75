"""A system small enough to train in a test, its pairs, and a few steps of it; run by torchrun too.

``torchrun --nproc-per-node 2 tests/export/training_system.py PLANES OUT`` trains both stages by all processes
and writes what the first one has then.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from export.bone_suppression import unet, vqgan
from export.bone_suppression.data import Squares
from export.bone_suppression.features import features
from export.bone_suppression.pairs import digest
from export.bone_suppression.reading import square
from export.bone_suppression.recipes import SYSTEMS, System
from export.bone_suppression.train_autoencoder import AutoencoderTraining
from export.bone_suppression.train_denoiser import DenoiserTraining
from export.devices import HERE, Place, place
from pacs_node.phantom import Phantom

SIDE = 64


def system(**changes: object) -> System:
    """1/4 of the side, 16 codes. ``changes`` are of the recipes that know them."""
    first, second = SYSTEMS["small"].autoencoder, SYSTEMS["small"].denoiser
    given = {"batch": 4, "rate": 4e-3, "warm_up": 5, "milestones": (), "crop": 48, "as_they_are": 0.0}
    both = {**given, "opponent_width": 4, "opponent_from": 0, "unquantised": 1, **changes}
    return replace(
        SYSTEMS["small"],
        size=SIDE,
        autoencoder_shape=vqgan.Shape(channels=(8, 8), residual=8, blocks=1, codes=16, decay=0.99),
        denoiser_shape=unet.Shape(
            outputs=4, width=16, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, groups=8
        ),
        autoencoder=replace(first, **{k: v for k, v in both.items() if hasattr(first, k)}),
        denoiser=replace(second, **{k: v for k, v in both.items() if hasattr(second, k)}),
    )


def planes(count: int = 3) -> np.ndarray:
    """(count, 3, SIDE, SIDE) uint16: phantoms with their lungs."""
    shown = [Phantom(seed).render(SIDE) for seed in range(count)]
    return np.stack(
        [
            [square(p.astype(np.float32), SIDE) for p in (s.radiograph, s.soft_tissue, s.lung_mask)]
            for s in shown
        ]
    )


def pairs(all_: np.ndarray) -> list[Squares]:
    """Those of ``planes``, each of a patient of its own."""
    return [Squares(f"phantom/{n}", digest(str(n)), one) for n, one in enumerate(all_)]


def autoencoder(chosen: System, given: list[Squares], here: Place = HERE) -> AutoencoderTraining:
    """The first stage with all of its losses."""
    return AutoencoderTraining(chosen, given, perceptual=features(), place=here)


def denoiser(chosen: System, given: list[Squares], here: Place = HERE) -> DenoiserTraining:
    """The second stage on an autoencoder that has learnt nothing."""
    torch.manual_seed(5)
    return DenoiserTraining(chosen, given, vqgan.MLVQGAN(chosen.autoencoder_shape), place=here)


def several_steps(here: Place, given: list[Squares], steps: int = 3) -> dict[str, torch.Tensor]:
    """The weights of both stages after a few steps with the same global batch wherever it runs."""
    weights = {}
    for stage in (autoencoder, denoiser):
        # Adam's steps are as long where a gradient is but rounding: with this epsilon they are not.
        training = stage(system(varied=True, epsilon=1e-2), given, here)
        for _ in range(steps):
            training.step()
        for part, learner in training.trainer.parts.items():
            state = learner.module.state_dict()
            weights |= {f"{stage.__name__}.{part}.{name}": value for name, value in state.items()}
    return weights


if __name__ == "__main__":
    torch.set_num_threads(1)
    with place("cpu", "fp32") as processes:
        result = several_steps(processes, pairs(np.load(sys.argv[1])))
        if processes.first:
            torch.save(result | {"world": torch.tensor(processes.world)}, sys.argv[2])
