"""Low-quality twins of good radiographs, as detectors, exposure, motion, scatter and storage make them.

Images are float32 (rows, columns) in [0, 1], bone-bright. Every kind takes a strength in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Kind = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def low_resolution(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Sampled down by 1.5 to 4 and brought up again: a coarse detector or a thumbnail."""
    rows, columns = image.shape
    factor = 1.5 + 2.5 * strength
    small = cv2.resize(
        image, (max(8, round(columns / factor)), max(8, round(rows / factor))), interpolation=cv2.INTER_AREA
    )
    how = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_LINEAR
    return cv2.resize(small, (columns, rows), interpolation=how)


def blur(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Focal spot and scintillator: Gaussian of 0.6 to 2.4 pixels."""
    return cv2.GaussianBlur(image, (0, 0), 0.6 + 1.8 * strength)


def motion(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The patient moves 3 to 9 pixels along a line during the exposure."""
    length = 3 + 6 * strength
    angle = rng.uniform(0, np.pi)
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    for s in np.linspace(-length / 2, length / 2, 4 * side):
        x, y = side // 2 + s * np.cos(angle), side // 2 + s * np.sin(angle)
        column, row = int(np.floor(x)), int(np.floor(y))
        for dr in (0, 1):
            for dc in (0, 1):
                if 0 <= row + dr < side and 0 <= column + dc < side:
                    kernel[row + dr, column + dc] += (1 - abs(y - row - dr)) * (1 - abs(x - column - dc))
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def electronic_noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of 0.01 to 0.06, white or slightly correlated as a scintillator makes it."""
    field = rng.standard_normal(image.shape).astype(np.float32)
    if rng.random() < 0.4:
        field = cv2.GaussianBlur(field, (0, 0), 0.7)
        field /= field.std() + 1e-6
    return image + (0.01 + 0.05 * strength) * field


def quantum_noise(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Too few quanta: Poisson noise, stronger where the body is dense and the image bright."""
    spread = np.sqrt(0.1 + 0.9 * np.clip(image, 0, 1)) * (0.012 + 0.06 * strength)
    return image + spread * rng.standard_normal(image.shape).astype(np.float32)


def low_contrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast down to 0.9 to 0.55 about the mean grey."""
    mean = float(image.mean())
    return mean + (image - mean) * (0.9 - 0.35 * strength)


def scatter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scattered radiation without a grid: a wide blur of the image mixed in, 15 to 50%."""
    share = 0.15 + 0.35 * strength
    small = cv2.resize(image, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
    wide = cv2.GaussianBlur(small, (0, 0), max(image.shape) / 8 * rng.uniform(0.06, 0.15))
    wide = cv2.resize(wide, image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return (1 - share) * image + share * wide


def jpeg(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Lossy storage: JPEG at quality 60 down to 12."""
    grey = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    _, packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, round(60 - 48 * strength)])
    return cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


#: In the order in which they act on an exposure.
KINDS: dict[str, Kind] = {
    "motion": motion,
    "scatter": scatter,
    "blur": blur,
    "low_resolution": low_resolution,
    "low_contrast": low_contrast,
    "quantum_noise": quantum_noise,
    "electronic_noise": electronic_noise,
    "jpeg": jpeg,
}
UNTOUCHED = 0.15


def degrade(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """One to three kinds of random strength, or (15%) the image itself: (float32 in [0, 1], names)."""
    if rng.random() < UNTOUCHED:
        return image.copy(), []
    chosen = set(rng.choice(list(KINDS), size=rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]), replace=False))
    result = image
    for name, kind in KINDS.items():
        if name in chosen:
            result = kind(result, float(rng.random()), rng)
    return np.clip(result, 0, 1).astype(np.float32), [n for n in KINDS if n in chosen]
