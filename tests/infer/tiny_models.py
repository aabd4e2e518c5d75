"""Images for the tiny models of fixtures/, and the deliberately wrong files beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
TINY = FIXTURES / "models"


def variant(name: str) -> bytes:
    """The content of one file of fixtures/variants."""
    return (FIXTURES / "variants" / name).read_bytes()


#: For ``make_model("tiny-bone", replace=…, files=…)``: a variant whose shallow graph takes away a quarter of
#: the image, where whole evaluations take away half.
SHALLOW = {
    "[digests]": '[variants.int8]\ndenoiser = "whole.onnx"\nshallow = "shallow.onnx"\n\n[digests]',
    "clip_start = 1.5": "clip_start = 1.5\ndeep_reach = 200.0",
}
SHALLOW_FILES = {name: variant(name) for name in ("whole.onnx", "shallow.onnx")}


def blocks(rows: int, columns: int, block: int, seed: int = 0) -> np.ndarray:
    """An image in [0, 1] that is constant over blocks: what the tiny models map exactly."""
    values = np.random.default_rng(seed).random((rows // block, columns // block), dtype=np.float32)
    return np.kron(values, np.ones((block, block), np.float32))


def smooth(rows: int, columns: int) -> np.ndarray:
    """A smooth image in [0.2, 0.8] of any size, with a slope along each axis."""
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    return np.float32(0.2) + np.float32(0.35) * y / (rows - 1) + np.float32(0.25) * x / (columns - 1)
