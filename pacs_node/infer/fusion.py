"""Poisson fusion: one image set into another inside a mask, without a seam.

f equals the target outside the mask and has the source's gradients inside (Perez, Gangnet, Blake: Poisson
Image Editing, SIGGRAPH 2003). So f = source + u, where u is the membrane that is target - source around the
mask and harmonic inside it: 4 u = the sum of its four neighbours. GL-LCM fuses so with OpenCV's
seamlessClone, which works on 8 bits; here it is float.

The equation is solved by conjugate gradients with a multigrid cycle for preconditioner (Trottenberg,
Oosterlee, Schueller: Multigrid, 2001): a fixed number of operations on each pixel for each digit.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Components of the mask under this share of the image are dust (GL-LCM: 100 pixels of 1024 x 1024).
_DUST = 100 / 1024**2
# The largest residual that is left, as a share of the first.
_TOLERANCE = 1e-6
_MOST_CYCLES = 200  # a lung of 1024 x 1024 takes about 20
_LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float64)
# Bilinear interpolation to cells of half the side, along one axis.
_NEAR, _FAR = 0.75, 0.25


def without_dust(mask: Mask) -> Mask:
    """The mask (H, W) without components (8-connected) that are too small to be a lung."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    kept = stats[:, cv2.CC_STAT_AREA] >= _DUST * mask.size
    kept[0] = False  # the background
    return np.asarray(kept[labels] if count > 1 else np.zeros_like(mask), np.bool_)


def fuse(target: Array, source: Array, mask: Mask) -> Array:
    """``source`` set into ``target`` where ``mask`` is true; all (H, W), float32 out.

    The outermost pixels of the image always stay the target's, as the membrane has to hang on something.
    """
    inside = mask.copy()
    inside[[0, -1], :] = inside[:, [0, -1]] = False
    if not inside.any():
        return np.array(target, np.float32)
    difference = np.where(inside, 0.0, target.astype(np.float64) - source)
    membrane = _membrane(difference, inside)
    return np.where(inside, source + membrane, target).astype(np.float32)


def _membrane(around: NDArray[np.float64], inside: Mask) -> NDArray[np.float64]:
    """u: ``around`` outside, harmonic ``inside``, which touches no edge."""
    columns, rows = (np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1))
    box = np.s_[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]
    masks = _pyramid(inside[box])
    around = around[box]
    right = -_laplace(around) * inside[box]  # what the fixed pixels pull
    unknown = np.zeros_like(right)
    residual = right
    stop = _TOLERANCE * np.abs(right).max()
    direction, measure = np.zeros_like(right), 1.0
    for _ in range(_MOST_CYCLES):
        if not np.abs(residual).max() > stop:
            break
        improvement = _cycle(residual, masks)
        product = float(np.vdot(improvement, residual))
        direction = improvement + product / measure * direction
        measure = product
        pull = _laplace(direction) * masks[0]
        stride = product / float(np.vdot(direction, pull))
        unknown += stride * direction
        residual = residual - stride * pull
    full = np.zeros(inside.shape)
    full[box] = unknown
    return full


def _laplace(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """4 u less its neighbours; nothing lies beyond the edge."""
    return np.asarray(cv2.filter2D(u, -1, _LAPLACE, borderType=cv2.BORDER_CONSTANT), np.float64)


def _pyramid(mask: Mask) -> list[NDArray[np.float64]]:
    """The mask, and of every two by two of its cells one, down to a few cells; 1 for unknown ones."""
    masks: list[Mask] = [mask]
    while min(masks[-1].shape) > 4:
        rows, columns = (-(-side // 2) * 2 for side in masks[-1].shape)
        padded = np.zeros((rows, columns), np.bool_)
        padded[: masks[-1].shape[0], : masks[-1].shape[1]] = masks[-1]
        masks.append(np.asarray(padded.reshape(rows // 2, 2, columns // 2, 2).any(axis=(1, 3)), np.bool_))
    return [level.astype(np.float64) for level in masks]


def _cycle(residual: NDArray[np.float64], masks: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One multigrid cycle's solution: symmetric and positive, as conjugate gradients need it."""
    mask = masks[0]
    weight = 0.2 * mask  # Jacobi's 1 / 4, damped by 0.8
    solution = weight * residual
    if len(masks) == 1:
        for _ in range(2 * max(mask.shape)):
            solution += weight * (residual - _laplace(solution))
        return solution
    coarse = _restrict(mask * (residual - _laplace(solution)), masks[1].shape) * masks[1]
    solution += mask * _prolong(_cycle(coarse, masks[1:]), mask.shape)
    return solution + weight * (residual - _laplace(solution))


def _prolong(coarse: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """To cells of half the side, bilinearly; 0 beyond the edge."""
    return _double(_double(coarse, shape[0]).T, shape[1]).T


def _double(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    fine = np.empty((2 * len(rows), rows.shape[1]))
    fine[0::2] = _NEAR * rows
    fine[1::2] = _NEAR * rows
    fine[2::2] += _FAR * rows[:-1]
    fine[1:-1:2] += _FAR * rows[1:]
    return fine[:count]


def _restrict(fine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The transpose of ``_prolong``: what lies around a cell, summed."""
    return _halve(_halve(fine, shape[0]).T, shape[1]).T


def _halve(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    padded = np.zeros((2 * count, rows.shape[1]))
    padded[: len(rows)] = rows
    even, odd = padded[0::2], padded[1::2]
    coarse = _NEAR * (even + odd)
    coarse[:-1] += _FAR * even[1:]
    coarse[1:] += _FAR * odd[:-1]
    return coarse
