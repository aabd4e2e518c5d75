"""What a plan is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pacs_node.infer.sampling.noise import Level

# The order of the coefficients that update.onnx takes.
COEFFICIENTS = (
    "point",  # clean estimate = gain * (point * x + prediction * p)
    "prediction",
    "gain",
    "clean",
    "last",
    "before",
    "noisy",
    "base",
    "noise",
    "keep",  # 1: the point before the update becomes b, 0: b stays
    "score_clean",  # score = score_clean * clean estimate + score_point * x
    "score_point",
    "langevin",  # Langevin's step: langevin * (norm of z / norm of the score)^2
    "watch",  # 0, times the prediction: one that is not finite spoils the result, and is seen
)


@dataclass(frozen=True)
class Step:
    """One step of a plan: the level at which the network is asked, and the update (see the package).

    ``langevin`` adds a step of Langevin dynamics along the score whose length the norms decide, e * score +
    sqrt(2 e) z with e = langevin * (|z| / |score|)^2 ([3], algorithms 4 and 5).
    """

    level: Level
    clean: float = 0.0
    noisy: float = 0.0
    noise: float = 0.0
    last: float = 0.0
    before: float = 0.0
    base: float = 0.0
    keep: bool = False
    langevin: float = 0.0

    @property
    def random(self) -> bool:
        """Whether noise is drawn."""
        return bool(self.noise or self.langevin)

    def coefficients(self, prediction: str) -> NDArray[np.float64]:
        """Shape (14,), in the order of COEFFICIENTS, for a network that predicts ``prediction``."""
        alpha, sigma = self.level.alpha, self.level.sigma
        score = (alpha / sigma**2, -1 / sigma**2) if self.langevin else (0.0, 0.0)
        own = (self.clean, self.last, self.before, self.noisy, self.base, self.noise, float(self.keep))
        estimate = clean_estimate(prediction, self.level)
        return np.array([*estimate, *own, *score, self.langevin, 0.0], np.float64)


def clean_estimate(prediction: str, level: Level) -> tuple[float, float, float]:
    """x_0 = gain * (point * x_t + predicted * p) of what the network predicted there: point, predicted, gain.

    The clean image itself; the noise ([1], equation 15); the score, -e / sigma; the velocity v = alpha e -
    sigma x_0 ([5], appendix D), hence x_0 = alpha x_t - sigma v. The gain last, as 1 / alpha is large where
    x_t is all but noise: so the difference is rounded before, not after. Raises ValueError on another word.
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction == "sample":
        return 0.0, 1.0, 1.0
    if prediction == "v_prediction":
        return alpha, -sigma, 1.0
    if prediction == "epsilon":
        return 1.0, -sigma, 1 / alpha
    if prediction == "score":
        return 1.0, sigma**2, 1 / alpha
    raise ValueError(f"unknown prediction {prediction!r}")


@dataclass(frozen=True)
class Plan:
    """``start``: the standard deviation of the noise to start from; then the steps, one evaluation each."""

    start: float
    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)


def limit(step: Step, train_steps: int, start: float | None, slope: float) -> float:
    """The bound of the clean estimate: [9]'s temporal adaptive thresholding, wider with each step walked.

    ``start`` + ``slope`` * the training steps walked since the noisiest level. The authors count their
    sampling steps, all 1000 of them in [9] and 50 in [13]. Without ``start`` there is none: infinity.
    """
    return math.inf if start is None else start + slope * (train_steps - 1 - step.level.t)
