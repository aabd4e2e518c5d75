"""What training shows of itself as it goes: figures and pictures of patients that it does not learn from."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from export.bone_suppression.data import Squares, draw
from export.bone_suppression.metrics import measures, psnr, ssim
from export.bone_suppression.train_autoencoder import AutoencoderTraining
from export.bone_suppression.train_denoiser import DenoiserTraining
from export.training import say

#: Side of a picture's tiles in pixels; how many rows it has; how much stronger differences are shown.
TILE, ROWS, STRONGER = 384, 6, 4.0
Rows = list[tuple[str, dict[str, float]]]


def chosen(pairs: Sequence[Squares], most: int) -> list[Squares]:
    """At most ``most`` pairs of each source."""
    by_source: dict[str, list[Squares]] = defaultdict(list)
    for squares in pairs:
        by_source[squares.source].append(squares)
    return [s for group in by_source.values() for s in group[:most]]


def shown(image: Tensor) -> np.ndarray:
    """(1, 1, S, S) in [-1, 1] -> (S, S) in [0, 1]."""
    return np.clip(image[0, 0].float().cpu().numpy() / 2 + 0.5, 0, 1)


def tiles(*images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] side by side, uint8."""
    small = [cv2.resize(np.clip(i, 0, 1), (TILE, TILE), interpolation=cv2.INTER_AREA) for i in images]
    return np.round(np.hstack(small) * 255).astype(np.uint8)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Grey where they are alike, brighter where ``one`` is."""
    return np.asarray(0.5 + STRONGER * (one - other))


def look_at_autoencoder(
    training: AutoencoderTraining, pairs: Sequence[Squares], out: Path, most: int
) -> None:
    """Original, decoded, and their difference; PSNR and SSIM of both images of a pair."""
    model, place = training.trainer.average.eval(), training.place
    rows: Rows = []
    pictures = []
    for squares in chosen(pairs, most):
        images = draw(squares, np.random.default_rng(0)).images
        both = []
        for image in images:
            with torch.no_grad(), place.autocast():
                decoded, _ = model(image[None].to(place.device))
            original, again = shown(image[None]), shown(decoded)
            both.append((original, again))
            rows.append((squares.source, {"psnr": psnr(again, original), "ssim": ssim(again, original)}))
        if len(pictures) < ROWS:
            pictures.append(tiles(*(t for o, a in both for t in (o, a, difference(a, o)))))
    training.trainer.model.train()
    record("autoencoder", training.trainer.iteration, rows, pictures, out)
    tell(training, rows)


def look_at_denoiser(training: DenoiserTraining, pairs: Sequence[Squares], out: Path, most: int) -> None:
    """Original, ours, truth, and ours less the truth.

    The figures are of the decoded soft tissue, as the authors publish it ("replaced"), and of the radiograph
    less the decoded bones, which keeps its detail ("subtracted"; in the picture).
    """
    rows: Rows = []
    pictures = []
    for number, squares in enumerate(chosen(pairs, most)):
        radiograph, truth = draw(squares, np.random.default_rng(0)).images
        soft, less = training.suppress(radiograph[None].to(training.place.device), seed=number)
        original, replaced, subtracted, true = map(shown, (radiograph[None], soft, less, truth[None]))
        found = measures(subtracted, original, true)
        found |= {
            f"replaced_{k}": v for k, v in measures(replaced, original, true).items() if "unchanged" not in k
        }
        rows.append((squares.source, found))
        if len(pictures) < ROWS:
            pictures.append(tiles(original, subtracted, true, difference(subtracted, true)))
    record("denoiser", training.trainer.iteration, rows, pictures, out)
    tell(training, rows)


def means(rows: Rows) -> dict[str, dict[str, float]]:
    """Of each source, and how many there are."""
    by_source: dict[str, list[dict[str, float]]] = defaultdict(list)
    for source, found in rows:
        by_source[source].append(found)
    return {
        source: {"images": len(all_), **{k: float(np.mean([f[k] for f in all_])) for k in all_[0]}}
        for source, all_ in by_source.items()
    }


def tell(training: AutoencoderTraining | DenoiserTraining, rows: Rows) -> None:
    """A line for each source."""
    for source, found in means(rows).items():
        figures = "  ".join(f"{k} {v:.3f}" for k, v in found.items() if k != "images")
        say(training.place, f"   validation, {source} ({found['images']:.0f}): {figures}")


def record(stage: str, iteration: int, rows: Rows, pictures: list[np.ndarray], out: Path) -> None:
    """Appends to ``out/STAGE.csv`` and writes ``out/STAGE-ITERATION.png``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{stage}.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        for source, found in means(rows).items():
            if new:
                writer.writerow(["iteration", "source", *found])
                new = False
            writer.writerow([iteration, source, *(f"{v:.5g}" for v in found.values())])
    cv2.imwrite(str(out / f"{stage}-{iteration:06d}.png"), np.vstack(pictures))
