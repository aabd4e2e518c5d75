"""Lung fields without a trained segmentation: to place nodules and to measure texture and rib shadows in."""

from __future__ import annotations

import cv2
import numpy as np

Array = np.ndarray
#: Side that the fields are looked for at; a field's least and largest share of the image, least solidity.
SIDE, SMALLEST, LARGEST, SOLID = 256, 0.025, 0.30, 0.72


def lungs(image: Array) -> Array | None:
    """Lung fields of a frontal radiograph in [0, 1], bone bright: bool of its shape, rather too small.

    Of all grey levels, the one below which a dark, solid patch on each side of the middle lies apart from the
    image's border and covers most. None where there is no such level (about one radiograph in fifteen).
    """
    small = cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (0, 0), 3.0)
    opened = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    best, covered = None, 0.0
    for level in np.quantile(smooth, np.linspace(0.06, 0.7, 33)):
        dark = cv2.morphologyEx((smooth < level).astype(np.uint8), cv2.MORPH_OPEN, opened)
        both = [_largest(dark, side) for side in (0, 1)]
        if any(field is None for field in both):
            continue
        fields = np.logical_or(*both)
        if fields.mean() > covered:
            best, covered = fields, float(fields.mean())
    if best is None:
        return None
    closed = cv2.morphologyEx(
        best.astype(np.float32), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21))
    )
    return np.asarray(cv2.resize(closed, image.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5)


def _largest(dark: Array, side: int) -> Array | None:
    """The largest dark patch whose middle lies on one side (0 left, 1 right) and that may be a lung."""
    count, labels, figures, middles = cv2.connectedComponentsWithStats(dark)
    best, area = None, SMALLEST * dark.size
    for number in range(1, count):
        left, top, width, height, size = figures[number]
        away = left > 1 and top > 1 and left + width < SIDE - 1 and top + height < SIDE - 1
        # The gap between the lungs is near the middle of every frontal radiograph.
        here = (middles[number][0] >= SIDE / 2) == bool(side)
        if (
            away
            and here
            and area < size < LARGEST * dark.size
            and width < 0.5 * SIDE
            and height > width * 0.9
        ):
            patch = (labels == number).astype(np.uint8)
            outline = max(cv2.findContours(patch, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
            if size > SOLID * cv2.contourArea(cv2.convexHull(outline)):
                best, area = patch > 0, size
    return best
