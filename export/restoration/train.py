"""Training of the denoiser on radiographs and their synthetic low-quality twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.anomaly import data as nih
from export.restoration.degrade import degrade
from export.restoration.diffusion import TRAIN_STEPS, add_noise, alphas_cumprod
from export.restoration.network import Denoiser, Shape
from export.training import Trainer, averaged, run

SIZE = 512
FIRST = 700  # iterations at the higher rate and with the smoother loss


def image_paths(folder: Path, part: str) -> list[Path]:
    """

    IH ChestX-ray14 (split by patient as for anomalies) and JSRT radiographs (split by image) of one part.
    """
    paths = [r.path for r in nih.select(nih.read_records(folder), part)]
    jsrt = sorted((folder / "jsrt_bse" / "cxr").glob("*.jpg"))
    return paths + [p for p in jsrt if nih.part_of(f"jsrt {p.stem}") == part]


def load_images(folder: Path, parts: tuple[str, ...], size: int, cache: Path) -> np.ndarray:
    """(n, size, size) uint8 images of the given parts of the split."""
    return nih.read_images([p for part in parts for p in image_paths(folder, part)], size, cache)


def draw_batch(images: np.ndarray, batch: int, crop: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Clean and degraded crops (N, 1, crop, crop) in [-1, 1], time steps and noise.

    Degraded before cropping.
    """
    clean, low = [], []
    side = images.shape[-1]
    for pick in rng.integers(len(images), size=batch):
        image = images[pick].astype(np.float32) / 255
        if rng.random() < 0.5:
            image = image[:, ::-1]
        if rng.random() < 0.5:
            image = image ** np.exp(rng.normal(0, 0.2))
        margin = 0 if crop == side else 32
        span = min(side, crop + 2 * margin)
        top, left = rng.integers(side - span + 1, size=2)
        window = np.ascontiguousarray(image[top : top + span, left : left + span], np.float32)
        worse, _ = degrade(window, rng)
        inner = (slice((span - crop) // 2, (span - crop) // 2 + crop),) * 2
        clean.append(window[inner])
        low.append(worse[inner])
    return {
        "clean": torch.from_numpy(np.stack(clean))[:, None] * 2 - 1,
        "condition": torch.from_numpy(np.stack(low))[:, None] * 2 - 1,
        "timestep": torch.from_numpy(rng.integers(TRAIN_STEPS, size=batch)),
        "noise": torch.from_numpy(rng.standard_normal((batch, 1, crop, crop), dtype=np.float32)),
    }


def loss_of(prediction: Tensor, clean: Tensor, condition: Tensor, smooth: float = 2e-3) -> Tensor:
    """Charbonnier error of the image and of its slopes, each example relative to its damage.

    So a veil over the whole image does not drown fine blur. Squared below ``smooth``: with the absolute error
    the many undamaged examples hold the net at "change nothing" from which it starts.
    """
    error = prediction.float() - clean

    def size(x: Tensor) -> Tensor:
        return ((x.square() + smooth**2).sqrt() - smooth).mean((1, 2, 3))

    each = size(error) + size(error.diff(dim=2)) + size(error.diff(dim=3))
    damage = (condition - clean).abs().mean((1, 2, 3))
    return (each * 0.05 / (damage + 0.02)).mean()


def make_trainer(shape: Shape, *, rate: float = 1e-3, seed: int = 0) -> Trainer:
    """The recipe's trainer."""
    return Trainer(
        lambda: Denoiser(shape),
        rate=rate,
        warm_up=100,
        decay=0.01,
        clip=0.3,
        seed=seed,
        milestones=((FIRST, 3e-4),),  # at 1e-3 it diverged at iteration 780
        betas=(0.9, 0.99),
    )


def step(
    trainer: Trainer, images: np.ndarray, batch_size: int, crop: int, alphas: Tensor
) -> dict[str, float]:
    """One update; every fourth takes fewer, larger crops (as many pixels). Returns the loss."""
    if trainer.iteration % 4 == 3 and batch_size >= 4 and 2 * crop <= images.shape[-1]:
        batch_size, crop = batch_size // 4, 2 * crop
    batch = draw_batch(images, batch_size, crop, trainer.rng())
    sample = add_noise(batch["clean"], batch["noise"], batch["timestep"], alphas)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = trainer.model(sample, batch["condition"], batch["timestep"].float())
    smooth = 1e-2 if trainer.iteration < FIRST else 2e-3
    return trainer.update({"error": loss_of(prediction, batch["clean"], batch["condition"], smooth)})


def load_denoiser(path: Path) -> Denoiser:
    """The averaged weights of a checkpoint, for evaluation and export."""
    shape, weights = averaged(path, Shape)
    model = Denoiser(shape)
    model.load_state_dict(weights)
    return model.eval()


def train(
    folder: Path,
    out: Path,
    *,
    shape: Shape,
    minutes: float,
    batch: int = 8,
    crop: int = 128,
    iterations: int | None = None,
) -> None:
    """Trains for ``minutes``, going on from ``out/restoration.pt`` if it is there."""
    images = load_images(folder, ("train", "validation"), SIZE, out.parent / "cache")
    trainer, alphas = make_trainer(shape), alphas_cumprod()
    run(
        trainer,
        lambda: step(trainer, images, batch, crop, alphas),
        out / "restoration.pt",
        minutes=minutes,
        iterations=iterations,
        every=50,
    )
