"""Synthetic findings on normal radiographs: what the self-supervised extractor learns to find.

The idea is CutPaste / DRAEM / NSA (Li et al., CVPR 2021; Zavrtanik et al., ICCV 2021; Schlueter et al., ECCV
2022) with the anatomy of the chest: findings lie in the lung fields, brighten them as fluid and consolidation
do, and come with their texture. Images are float32 (size, size) in [0, 1], bone-bright.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Draw = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def noise(size: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of zero mean and unit variance whose structures are about ``scale`` pixels wide."""
    cells = max(2, round(size / scale))
    field = cv2.resize(
        rng.standard_normal((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    return (field - field.mean()) / (field.std() + 1e-6)


def texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Patchy texture of several scales, zero mean, about unit variance."""
    weights = rng.dirichlet((1.0, 1.0, 1.0))
    fields = (noise(size, size / cells, rng) for cells in (10, 24, 60))
    return sum(np.sqrt(w) * f for w, f in zip(weights, fields, strict=True))


def place(lungs: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel (row, column) inside the lung fields.

    The lower and inner zones being no rarer than the rest.
    """
    inside = np.flatnonzero(lungs > 0.5)
    if inside.size == 0:
        inside = np.arange(lungs.size)
    row, column = np.unravel_index(rng.choice(inside), lungs.shape)
    return int(row), int(column)


def blob(lungs: np.ndarray, rng: np.random.Generator, smallest: float, largest: float) -> np.ndarray:
    """A soft irregular region in [0, 1] around a place in the lungs; radii are shares of the image's side."""
    size = lungs.shape[0]
    row, column = place(lungs, rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    long = rng.uniform(smallest, largest) * size
    short = long * rng.uniform(0.45, 1.0)
    u = (x - column) * np.cos(angle) + (y - row) * np.sin(angle)
    v = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
    distance = np.sqrt((u / long) ** 2 + (v / short) ** 2) + rng.uniform(0.05, 0.3) * noise(size, long, rng)
    softness = rng.uniform(0.25, 1.0)
    return np.clip((1 - distance) / softness + 0.5, 0, 1) ** rng.uniform(0.7, 1.5)


def soft_tissue_level(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> float:
    """The grey that fluid-filled lung tends to: between the lungs' and the mediastinum's."""
    body = image[image.shape[0] // 5 : -image.shape[0] // 8, image.shape[1] // 8 : -image.shape[1] // 8]
    return float(np.quantile(body, rng.uniform(0.7, 0.95)))


def opacity(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Air-space opacity: one to three soft regions filled towards soft-tissue grey, with patchy texture."""
    level = soft_tissue_level(image, lungs, rng)
    region = np.zeros_like(image)
    for _ in range(rng.integers(1, 4)):
        region = np.maximum(region, blob(lungs, rng, 0.04, 0.2) * rng.uniform(0.5, 1))
    region *= np.maximum(lungs, rng.uniform(0, 0.4))
    patchy = np.clip(1 + rng.uniform(0, 0.3) * texture(image.shape[0], rng), 0, 2)
    return image + np.clip(rng.uniform(0.12, 0.8) * region * patchy, 0, 1) * np.maximum(level - image, 0)


def haze(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ground glass or oedema: one or both lungs hazy, stronger near the hila or the bases."""
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    weight = np.ones_like(image)
    if rng.random() < 0.5:
        weight = np.exp(-(((x - 0.5) / 0.25) ** 2 + ((y - 0.52) / 0.25) ** 2))
    elif rng.random() < 0.6:
        weight = 1 / (1 + np.exp(-(y - rng.uniform(0.4, 0.6)) / 0.06))
    if rng.random() < 0.5:
        weight = weight * ((x < 0.5) if rng.random() < 0.5 else (x >= 0.5))
    weight = weight * lungs * np.clip(1 + rng.uniform(0, 0.25) * texture(size, rng), 0, 2)
    level = soft_tissue_level(image, lungs, rng)
    return image + np.clip(rng.uniform(0.12, 0.6) * weight, 0, 1) * np.maximum(level - image, 0)


def effusion(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fluid at a lung's base with a meniscus that rises towards the side."""
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    side = lungs * ((x < size / 2) if rng.random() < 0.5 else (x >= size / 2))
    rows, columns = (np.flatnonzero((side > 0.5).any(axis=axis)) for axis in (1, 0))
    if rows.size == 0:
        return opacity(image, lungs, rng)
    inner, outer = sorted((columns[0], columns[-1]), key=lambda column: abs(column - size / 2))
    outward = np.clip((x - inner) / (outer - inner + 1e-6), 0, 1)
    surface = rows[-1] - size * (rng.uniform(0.0, 0.22) + rng.uniform(0, 0.15) * outward**3)
    below = np.clip((y - surface) / (rng.uniform(0.03, 0.12) * size), 0, 1)
    beside = ((x >= columns[0]) & (x <= columns[-1])).astype(np.float32)
    body = np.clip(4 * cv2.GaussianBlur(image, (0, 0), size / 60), 0, 1)
    region = below * cv2.GaussianBlur(beside, (0, 0), size / 60) * body
    level = soft_tissue_level(image, lungs, rng)
    return image + rng.uniform(0.4, 1) * region * np.maximum(level - image, 0)


def interstitial(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reticular or nodular pattern: fine band-limited texture, mostly brightening.

    Over a part of the lungs.
    """
    size = image.shape[0]
    region = lungs * np.maximum(blob(lungs, rng, 0.12, 0.35), (rng.random() < 0.3) * 1.0)
    width = rng.uniform(2.5, 7)
    fine = noise(size, width, rng)
    pattern = np.abs(fine) - 0.6 if rng.random() < 0.5 else np.maximum(fine, -0.3)
    return image + rng.uniform(0.01, 0.045) * region * (pattern + rng.uniform(0, 0.8))


def nodule(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to four round soft opacities."""
    result = image
    for _ in range(rng.integers(1, 5)):
        result = result + rng.uniform(0.03, 0.12) * blob(lungs, rng, 0.015, 0.045)
    return result


def lost_detail(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vessels and borders lost in a region, as where consolidated lung meets heart or diaphragm."""
    region = blob(lungs, rng, 0.06, 0.18)
    blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(3, 7)) + rng.uniform(0.0, 0.08)
    return image + region * (blurred - image)


FINDINGS: dict[str, tuple[Draw, float]] = {
    "opacity": (opacity, 0.34),
    "haze": (haze, 0.22),
    "effusion": (effusion, 0.12),
    "interstitial": (interstitial, 0.12),
    "nodule": (nodule, 0.08),
    "lost_detail": (lost_detail, 0.04),
}
PASTE = 0.08


def paste(image: np.ndarray, other: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch of another normal radiograph blended in softly where it does not belong (as NSA does)."""
    size = image.shape[0]
    region = blob(lungs, rng, 0.05, 0.16)
    row, column = place(lungs, rng)
    source_row, source_column = place(lungs, rng)
    shift = np.array([[1, 0, column - source_column], [0, 1, row - source_row]], np.float32)
    patch = cv2.warpAffine(other, shift, (size, size), borderMode=cv2.BORDER_REFLECT)
    offset = float((region * (image - patch)).sum() / (region.sum() + 1e-6))
    return image + region * (patch + offset * rng.uniform(0, 1) - image)


def add_findings(
    image: np.ndarray, lungs: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One or two synthetic findings: (image in [0, 1], signed change of the image, names)."""
    kinds = [*FINDINGS, "paste"]
    chances = np.array([*(share for _, share in FINDINGS.values()), PASTE])
    names = list(rng.choice(kinds, size=1 + (rng.random() < 0.3), p=chances / chances.sum(), replace=False))
    result = image
    for name in names:
        if name == "paste":
            result = paste(result, other, lungs, rng)
        else:
            result = FINDINGS[name][0](result, lungs, rng)
    result = np.clip(result, 0, 1).astype(np.float32)
    return result, result - image, [str(n) for n in names]


def vary(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, flip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The same normal chest as another exposure: small shifts, turns, zooms, mirror, other tone curve."""
    size = image.shape[0]
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), rng.normal(0, 4), rng.uniform(0.88, 1.14))
    matrix[:, 2] += rng.normal(0, 0.025 * size, 2)
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(mask, matrix, (size, size), borderMode=cv2.BORDER_CONSTANT)
    if flip and rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    low, high = np.quantile(image[::8, ::8], (0.02, 0.98))
    tone = np.clip((image - low) / max(high - low, 0.1), 0, 1) ** np.exp(rng.normal(0, 0.2))
    image = tone if rng.random() < 0.5 else np.clip(image, 0, 1) ** np.exp(rng.normal(0, 0.15))
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask)


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, brightness, blur and noise that say nothing about disease.

    Applied with and without findings.
    """
    image = (image - 0.5) * rng.uniform(0.75, 1.1) + 0.5 + rng.normal(0, 0.05)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(0.002, 0.02), image.shape).astype(np.float32)
    return np.clip(image, 0, 1).astype(np.float32)
