"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

Array = np.ndarray


def tile(image: Array, side: int, caption: str = "") -> Array:
    """(rows, columns) in [0, 1] -> uint8 (side, side), proportions kept, with a caption in a corner."""
    scale = side / max(image.shape)
    rows, columns = (max(1, round(n * scale)) for n in image.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = cv2.resize(np.clip(image, 0, 1).astype(np.float32), (columns, rows), interpolation=method)
    canvas = np.zeros((side, side), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    canvas[top : top + rows, left : left + columns] = np.round(small * 255)
    if caption:
        (width, _), _ = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        canvas[:22, : width + 10] = 0
        cv2.putText(canvas, caption, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA)
    return canvas


def sheet(path: Path, rows: Sequence[Sequence[tuple[Array, str]]], side: int) -> Path:
    """Rows of images with captions, as one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [np.hstack([tile(image, side, caption) for image, caption in row]) for row in rows]
    width = max(line.shape[1] for line in lines)
    lines = [np.pad(line, ((0, 0), (0, width - line.shape[1]))) for line in lines]
    cv2.imwrite(str(path), np.vstack(lines))
    return path
