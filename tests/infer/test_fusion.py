"""Poisson fusion against the exact solution of its equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pacs_node.infer.fusion import fuse, without_dust

Solve = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def dense(i: np.ndarray, j: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a small system, given by its entries."""
    matrix = np.zeros((len(right), len(right)))
    matrix[i, j] = values
    return np.linalg.solve(matrix, right)


def sparse(i: np.ndarray, j: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same of a large one."""
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import spsolve

    return spsolve(csc_matrix((values, (i, j))), right)


def exactly_fused(
    target: np.ndarray, source: np.ndarray, mask: np.ndarray, solve: Solve = dense
) -> np.ndarray:
    """4 u - its neighbours = 0 inside, u = target - source outside, as one linear system."""
    inside = mask.copy()
    inside[[0, -1], :] = inside[:, [0, -1]] = False
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return target.astype(np.float64)
    number = np.full(mask.shape, -1)
    number[rows, columns] = own = np.arange(len(rows))
    difference = target.astype(np.float64) - source
    known = np.zeros(len(rows))
    entries = [(own, own, np.full(len(rows), 4.0))]
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        neighbour = number[rows + down, columns + right]
        free = neighbour >= 0
        entries.append((own[free], neighbour[free], np.full(free.sum(), -1.0)))
        known[~free] += difference[rows + down, columns + right][~free]
    i, j, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    fused = target.astype(np.float64)
    fused[inside] = source[inside] + solve(i, j, values, known)
    return fused


def images(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    target = 0.5 + 0.3 * np.sin(9 * x + seed) + 0.1 * rng.standard_normal((rows, columns))
    source = 0.4 + 0.2 * np.cos(7 * y) + 0.1 * rng.standard_normal((rows, columns))
    return target.astype(np.float32), source.astype(np.float32)


@pytest.mark.torch
def test_two_lungs() -> None:
    pytest.importorskip("scipy", reason="the torch side (make test-all)")
    target, source = images(300, 260, 0)
    y, x = np.mgrid[0:1:300j, 0:1:260j]
    mask = ((x - 0.28) ** 2 / 0.03 + (y - 0.5) ** 2 / 0.1 < 1) | (
        (x - 0.72) ** 2 / 0.03 + (y - 0.5) ** 2 / 0.1 < 1
    )
    fused = fuse(target, source, mask)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, exactly_fused(target, source, mask, sparse), atol=1e-5)
    assert (fused[~mask] == target[~mask]).all()
    # No seam: across the edge of the mask it changes as the source does inside.
    steps = np.abs(np.diff(fused - source, axis=1))[:, :-1][mask[:, 1:-1] & mask[:, 2:]]
    assert steps.max() < 0.3


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(3, 40),
    columns=st.integers(3, 40),
    seed=st.integers(0, 1000),
    share=st.floats(0.01, 0.999),
)
def test_any_mask(rows: int, columns: int, seed: int, share: float) -> None:
    """Ragged, of many parts, with holes, up to the edges, or empty."""
    target, source = images(rows, columns, seed)
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    np.testing.assert_allclose(fuse(target, source, mask), exactly_fused(target, source, mask), atol=1e-5)


def test_a_constant_apart_is_no_difference() -> None:
    """The membrane takes it up, so moving the source to the target's mean beforehand changes nothing."""
    target, source = images(64, 64, 3)
    mask = np.zeros((64, 64), bool)
    mask[10:50, 12:40] = True
    np.testing.assert_allclose(
        fuse(target, source + np.float32(0.25), mask), fuse(target, source, mask), atol=1e-5
    )
    np.testing.assert_allclose(fuse(target, target + np.float32(0.25), mask), target, atol=1e-5)


def test_dust_is_not_a_lung() -> None:
    mask = np.zeros((512, 512), bool)
    mask[100:300, 100:200] = True
    mask[400, 400:424] = True  # 24 pixels, less than 100 of 1024 x 1024
    mask[450, 400:426] = True  # 26, and so kept
    kept = without_dust(mask)
    assert not kept[400].any()
    assert kept[450, 400:426].all()
    assert (kept[100:300] == mask[100:300]).all()
    assert not without_dust(np.zeros((64, 64), bool)).any()
