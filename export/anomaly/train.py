"""Self-supervised training of the extractor: find.

Outline and measure synthetic findings on normal radiographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from export.anomaly import data, synthesis
from export.anomaly.network import Extractor, Output, Shape
from export.training import Trainer, averaged, run

FINDING_SHARE = 0.6
COVERED = 0.03  # a change of 3% of the grey range counts as a finding


@dataclass
class Normals:
    """Normal radiographs of one part: images (n, S, S) uint8, lung masks (n, S, S) uint8, conditions (n.

    5).
    """

    images: np.ndarray
    lungs: np.ndarray
    conditions: np.ndarray


def load_normals(folder: Path, part: str, size: int, cache: Path, *, jsrt: bool) -> Normals:
    """No Finding radiographs of one part; with ``jsrt`` also JSRT's without nodule (conditions: PA.

    Rest unknown).
    """
    records = data.select(data.read_records(folder), part, normal=True)
    paths = [r.path for r in records]
    conditions = [r.conditions for r in records]
    if jsrt:
        extra = sorted((folder / "jsrt_bse" / "cxr").glob("JPCNN*.jpg"))
        paths += extra
        conditions += [data.condition_vector(None, None, "PA")] * len(extra)
    images = data.read_images(paths, size, cache)
    lungs = np.stack(
        [np.round(data.lung_mask(i.astype(np.float32) / 255) * 255).astype(np.uint8) for i in images]
    )
    return Normals(images, lungs, np.array(conditions, np.float32))


def draw_batch(normals: Normals, batch: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Images (N, 1, S, S) in [-1, 1] with their signed change.

    The part covered by a finding and the conditions.
    """
    images, changes, present = [], [], []
    picks = rng.choice(len(normals.images), batch)
    for pick in picks:
        image, lungs = synthesis.vary(
            normals.images[pick].astype(np.float32) / 255, normals.lungs[pick].astype(np.float32) / 255, rng
        )
        change = np.zeros_like(image)
        if rng.random() < FINDING_SHARE:
            other = normals.images[rng.integers(len(normals.images))].astype(np.float32) / 255
            image, change, _ = synthesis.add_findings(image, lungs, other, rng)
        images.append(synthesis.degrade(image, rng))
        changes.append(change)
        present.append(float(np.abs(change).max() > COVERED and (np.abs(change) > COVERED).mean() > 5e-4))
    change = torch.from_numpy(np.stack(changes))[:, None]
    return {
        "image": torch.from_numpy(np.stack(images))[:, None] * 2 - 1,
        "change": F.avg_pool2d(change, 4),
        "covered": F.avg_pool2d((change.abs() > COVERED).float(), 4),
        "present": torch.tensor(present),
        "conditions": torch.from_numpy(normals.conditions[picks]),
    }


def loss_of(output: Output, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms of the loss; their plain sum is minimised."""
    logit, amount = output.change.float().unbind(1)
    covered = batch["covered"][:, 0]
    chance = torch.sigmoid(logit)
    overlap = (2 * (chance * covered).sum((1, 2)) + 1) / ((chance + covered).sum((1, 2)) + 1)
    known = batch["conditions"]
    age, sex, view = output.conditions.float().unbind(1)
    return {
        "outline": F.binary_cross_entropy_with_logits(logit, covered) * 4,
        "overlap": (1 - overlap).mean() * 0.3,
        "amount": F.l1_loss(amount, batch["change"][:, 0] * 10),
        "present": F.binary_cross_entropy_with_logits(output.image.float(), batch["present"]) * 0.5,
        "conditions": (
            ((age - known[:, 0]).abs() * known[:, 1]).mean()
            + (F.softplus(-2 * sex * known[:, 2]) * known[:, 2].abs()).mean() * 0.1
            + (F.softplus(-2 * view * known[:, 3]) * known[:, 3].abs()).mean() * 0.1
        ),
    }


def make_trainer(shape: Shape, *, seed: int = 0) -> Trainer:
    """The recipe's trainer."""
    return Trainer(lambda: Extractor(shape), rate=1e-3, warm_up=50, decay=0.02, clip=2.0, seed=seed)


def step(trainer: Trainer, normals: Normals, batch_size: int) -> dict[str, float]:
    """One update on a fresh batch; returns the terms of the loss."""
    batch = draw_batch(normals, batch_size, trainer.rng())
    trainer.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = trainer.model(batch["image"].contiguous(memory_format=torch.channels_last))
    return trainer.update(loss_of(output, batch))


def load_extractor(path: Path) -> Extractor:
    """The averaged weights of a checkpoint, for evaluation and export."""
    shape, weights = averaged(path, Shape)
    model = Extractor(shape)
    model.load_state_dict(weights)
    return model.eval()


def train(
    folder: Path, out: Path, *, shape: Shape, minutes: float, batch: int = 24, iterations: int | None = None
) -> None:
    """Trains for ``minutes``, going on from ``out/anomaly.pt`` if it is there."""
    normals = load_normals(folder, "train", shape.size, out.parent / "cache", jsrt=True)
    trainer = make_trainer(shape)
    run(
        trainer,
        lambda: step(trainer, normals, batch),
        out / "anomaly.pt",
        minutes=minutes,
        iterations=iterations,
    )
