"""How near a result is to the soft tissue: arrays (rows, columns) in [0, 1]."""

from __future__ import annotations

import numpy as np

from export.restoration.evaluate import psnr, ssim

__all__ = ["bone_suppression_ratio", "measures", "psnr", "published_bone_suppression_ratio", "ssim"]


def bone_suppression_ratio(result: np.ndarray, radiograph: np.ndarray, soft_tissue: np.ndarray) -> float:
    """1 - sum(residual^2) / sum(bone^2), each where it lies above the soft tissue once means are equal.

    1 is all bone gone, 0 none: what is left of the bones counts, not what was taken too much.
    """

    def energy(image: np.ndarray) -> float:
        difference = (image - image.mean()) - (soft_tissue - soft_tissue.mean())
        return float(np.square(np.maximum(difference, 0)).sum())

    return 1 - energy(result) / max(energy(radiograph), 1e-12)


def published_bone_suppression_ratio(
    result: np.ndarray, radiograph: np.ndarray, soft_tissue: np.ndarray
) -> float:
    """BSR as cal_BSR of BS-LDM's and GL-LCM's metrics.py has it, to compare with their tables.

    The result is shifted to the soft tissue's mean; what counts is where it is then DARKER than the truth
    (taken too much), over the energy of the whole difference that bones make, whose mean stays in it. A
    radiograph left as it is scores well by it, so it says little without that score beside it.
    """
    result = result + (soft_tissue - result).mean()
    bias = np.maximum(soft_tissue - result, 0)
    return float(1 - np.square(bias).sum() / max(np.square(radiograph - soft_tissue).sum(), 1e-12))


def measures(result: np.ndarray, radiograph: np.ndarray, soft_tissue: np.ndarray) -> dict[str, float]:
    """Of one result, and of the radiograph left as it is."""
    return {
        "psnr": psnr(result, soft_tissue),
        "psnr_unchanged": psnr(radiograph, soft_tissue),
        "ssim": ssim(result, soft_tissue),
        "ssim_unchanged": ssim(radiograph, soft_tissue),
        "bsr": bone_suppression_ratio(result, radiograph, soft_tissue),
        "bsr_published": published_bone_suppression_ratio(result, radiograph, soft_tissue),
        "bsr_published_unchanged": published_bone_suppression_ratio(radiograph, radiograph, soft_tissue),
    }
