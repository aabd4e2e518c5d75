"""Between an image's own matrix and a model's square.

The image is resized to fit the square with its proportions kept, then its edge pixels are repeated to fill
the square: nothing is cropped, and no dark border appears that the model never saw in training. The way
back cuts the filling off and resizes each axis by exactly the inverse factor. Only smooth things go back
(differences, heatmaps); fine detail stays in the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pacs_node.errors import Refused

Array = NDArray[np.float32]

MIN_SIDE = 64
MAX_ASPECT = 4.0


def check_image(image: Array) -> None:
    """Accept a float32 (H, W) image in [0, 1]; another array is a caller's error and raises ValueError.

    Raises Refused("image-size") for a side under 64 pixels or an aspect beyond 4, and
    Refused("constant-image") for an image without any contrast: no radiograph, and nothing that a model
    could say anything about.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 2:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"a model takes a float32 array of rows and columns, not {found}")
    rows, columns = image.shape
    if min(rows, columns) < MIN_SIDE or max(rows, columns) > MAX_ASPECT * min(rows, columns):
        raise Refused(
            "image-size",
            f"An image of {rows} x {columns} pixels is no chest radiograph: each side must be at least "
            f"{MIN_SIDE} and at most {MAX_ASPECT:g} times the other",
            "Send the whole radiograph",
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # NaN fails this too
        raise ValueError(f"a model takes an image in [0, 1], not in [{low:g}, {high:g}]")
    if low == high:
        raise Refused(
            "constant-image", f"All pixels of the image are alike ({low:g})", "Send an image with content"
        )


@dataclass(frozen=True)
class Frame:
    """How an image of ``rows`` x ``columns`` lies in a square of ``size``: its box there, centred."""

    rows: int
    columns: int
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the image inside the square."""
        scale = self.size / max(self.rows, self.columns)
        height = max(1, min(self.size, round(self.rows * scale)))
        width = max(1, min(self.size, round(self.columns * scale)))
        return (self.size - height) // 2, (self.size - width) // 2, height, width

    def to_square(self, image: Array) -> Array:
        """(rows, columns) -> (size, size): by area when shrinking, without aliasing; linear when growing."""
        top, left, height, width = self.box
        inside = resize(image, height, width)
        bottom, right = self.size - top - height, self.size - left - width
        return np.pad(inside, ((top, bottom), (left, right)), mode="edge")

    def to_native(self, square: Array) -> Array:
        """(size, size) -> (rows, columns): the box alone; cubic when growing, which may overshoot a little.

        Brought up from 512 to 1024 pixels, true dual-energy bone images lie 0.7 to 1.3 dB nearer to
        themselves by cubic than by linear interpolation (and 0.1 to 0.2 dB more by Lanczos, with more
        ringing).
        """
        top, left, height, width = self.box
        inside = square[top : top + height, left : left + width]
        return resize(inside, self.rows, self.columns, cv2.INTER_CUBIC)


def resize(image: Array, rows: int, columns: int, growing: int = cv2.INTER_LINEAR) -> Array:
    """By area when shrinking, as ``growing`` says otherwise."""
    if image.shape == (rows, columns):
        return image
    shrinking = rows <= image.shape[0] and columns <= image.shape[1]
    method = cv2.INTER_AREA if shrinking else growing
    resized: Array = cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=method)
    return resized
