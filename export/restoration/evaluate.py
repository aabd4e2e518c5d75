"""Figures of the shipped restoration model on radiographs that it has not seen.

Through the runtime itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.anomaly.data import read_image
from export.restoration.degrade import KINDS
from export.restoration.train import SIZE, image_paths
from pacs_node.conditions import Conditions
from pacs_node.infer import Settings, load, read_card

STRENGTH = 0.6


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for images in [0, 1]."""
    return float(-10 * np.log10(max(float(np.square(image - reference).mean()), 1e-10)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al., TIP 2004): Gaussian window of 1.5 pixels, range 1."""

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x.astype(np.float64), (11, 11), 1.5)

    a, b = mean(image), mean(reference)
    variance_a, variance_b = mean(image * image) - a * a, mean(reference * reference) - b * b
    covariance = mean(image * reference) - a * b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variance_a + variance_b + c2))
    return float(value.mean())


def degraded(image: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """One kind at strength 0.6; ``mixture``: motion, scatter, quantum noise and JPEG at 0.4; or ``none``."""
    if name == "none":
        return image
    if name == "mixture":
        for kind in ("motion", "scatter", "quantum_noise", "jpeg"):
            image = KINDS[kind](np.clip(image, 0, 1), 0.4, rng)
    else:
        image = KINDS[name](image, STRENGTH, rng)
    return np.clip(image, 0, 1).astype(np.float32)


def evaluate(
    model_folder: Path, folder: Path, out: Path, *, count: int = 8, steps: int | None = None
) -> dict[str, Any]:
    """PSNR and SSIM before and after, for each degradation, over ``count`` test radiographs at model size."""
    model = load(read_card(model_folder), Settings(steps=steps))
    paths = image_paths(folder, "test")
    paths = paths[:: max(1, len(paths) // count)][:count]
    names = ["none", *KINDS, "mixture"]
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    tiles = []
    for index, path in enumerate(paths):
        image = read_image(path, SIZE)
        for number, name in enumerate(names):
            low = degraded(image, name, np.random.default_rng((index, number)))
            result = model(low, Conditions(), seed=index)
            clean = result.image
            change = np.abs(clean - low)
            rows[name].append(
                (
                    psnr(low, image),
                    psnr(clean, image),
                    ssim(low, image),
                    ssim(clean, image),
                    float(change.mean()),
                    float(np.quantile(change, 0.99)),
                    result.seconds,
                )
            )
            if index == 1:
                part = np.s_[120:376, 60:316]
                tiles.append(np.hstack([x[part] for x in (low, clean, image)]))
    out.mkdir(parents=True, exist_ok=True)
    picture = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles) // 2 * 2, 2)])
    cv2.imwrite(str(out / "restoration.png"), np.round(picture * 255).astype(np.uint8))
    found: dict[str, Any] = {
        "measured": "radiographs of test patients at model size, one simulated degradation at strength 0.6; "
        "mixture: motion, scatter, quantum noise and JPEG at 0.4",
        "images": len(paths),
        "steps": result.parameters["steps"],
    }
    for name, values in rows.items():
        before, after, similar, similar_after, mean_change, high_change, _seconds = np.mean(values, axis=0)
        found[name] = {
            "mean_change": round(float(mean_change), 4),
            "change_99th_percentile": round(float(high_change), 4),
        }
        if name != "none":
            found[name] = {
                "psnr_before": round(float(before), 2),
                "psnr_after": round(float(after), 2),
                "ssim_before": round(float(similar), 3),
                "ssim_after": round(float(similar_after), 3),
            }
    found["seconds_per_image"] = round(float(np.median([v[6] for r in rows.values() for v in r])), 2)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| degradation | PSNR before | after | gain | SSIM before | after |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        if isinstance(row, dict) and "psnr_before" in row:
            gain = row["psnr_after"] - row["psnr_before"]
            lines.append(
                f"| {name} | {row['psnr_before']} | {row['psnr_after']} | {gain:+.2f} | "
                f"{row['ssim_before']} | "
                f"{row['ssim_after']} |"
            )
    none = found["none"]
    lines += [
        "",
        f"Undegraded: mean change {none['mean_change']}, 99th percentile {none['change_99th_percentile']} "
        f"of the grey range. {found['images']} images, {found['steps']} steps, "
        f"{found['seconds_per_image']} s an image.",
    ]
    return "\n".join(lines)
