"""The noise that a model was trained against: alpha and sigma of every level, in every family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pacs_node.infer.sampling.rules import CONTINUOUS, FAMILIES

if TYPE_CHECKING:
    from pacs_node.infer.tables import Diffusion

# Where zero terminal SNR leaves no signal at all, samplers that live in the ratio take this one instead: abar
# = 2^-24, as diffusers does.
LARGEST_RATIO = math.sqrt(2.0**24 - 1)


@dataclass(frozen=True)
class Level:
    """One level of noise. ``t``: its place among the training levels, 0 to train_steps - 1, between them too.

    ``told``: what the network is given as its time step.
    """

    t: float
    told: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf


CLEAN = Level(t=-1.0, told=-1.0, alpha=1.0, sigma=0.0)


class Noise:
    """The levels of one card's [diffusion]; arithmetic in double precision.

    Discrete schedules tell the network the number of the level, 0 the least noise. The SDEs of [3] are cut
    into ``train_steps`` levels at even times from ``sampling_eps`` to 1, and tell it (train_steps - 1) * time
    (VP, sub-VP) or sigma (VE), as the authors do.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion = diffusion
        self.family = FAMILIES[diffusion.schedule]
        self.continuous = diffusion.schedule in CONTINUOUS
        self.train_steps = diffusion.train_steps
        self.ratios = self._ratios()

    def at(self, t: float) -> Level:
        """The level at ``t``; between discrete levels the ratio is interpolated, as diffusers does."""
        if self.continuous:
            return self.at_time(self.time(t))
        return self.of_ratio(float(np.interp(t, np.arange(self.train_steps), self.ratios)), t)

    def of_ratio(self, ratio: float, t: float) -> Level:
        """The level of that ratio, which lies at ``t``."""
        alpha, sigma = self._split(ratio)
        told = sigma if self.diffusion.schedule == "ve" else t
        if self.continuous and self.family != "ve":
            told = self.time(t) * (self.train_steps - 1)
        return Level(t, told, alpha, sigma)

    def place(self, ratio: float) -> float:
        """The ``t`` of a ratio: linear in its logarithm between the levels ([11], as diffusers does)."""
        known = np.isfinite(self.ratios)
        t = np.arange(self.train_steps, dtype=np.float64)
        return float(np.interp(math.log(ratio), np.log(self.ratios[known]), t[known]))

    def time(self, t: float) -> float:
        """The time in [sampling_eps, 1] of a continuous schedule's ``t``."""
        eps = self.eps
        return eps + (1 - eps) * t / (self.train_steps - 1)

    @property
    def eps(self) -> float:
        """Where an SDE ends: the smallest time, as there is no score at 0."""
        default = 1e-5 if self.family == "ve" else 1e-3
        return default if self.diffusion.sampling_eps is None else self.diffusion.sampling_eps

    def at_time(self, time: float) -> Level:
        """The level of a continuous schedule at ``time`` in (0, 1]: its marginal ([3], equation 29)."""
        t = (time - self.eps) / (1 - self.eps) * (self.train_steps - 1)
        told = time * (self.train_steps - 1)
        if self.family == "ve":
            sigma = self._geometric(time)
            return Level(t, sigma, 1.0, sigma)
        integral = self._integral(time)
        alpha = math.exp(-0.5 * integral)
        variance = -math.expm1(-integral)
        return Level(t, told, alpha, variance if self.family == "sub_vp" else math.sqrt(variance))

    def beta(self, time: float) -> float:
        """beta(t) of VP and sub-VP."""
        low, high = self.diffusion.beta_min, self.diffusion.beta_max
        return low + time * (high - low)

    def drift(self, time: float) -> float:
        """f of dx = f x dt + g dw ([3], equations 9, 11 and appendix B)."""
        return 0.0 if self.family == "ve" else -0.5 * self.beta(time)

    def diffusion_squared(self, time: float) -> float:
        """g^2 of dx = f x dt + g dw."""
        if self.family == "ve":
            low, high = self.diffusion.sigma_min, self.diffusion.sigma_max
            return self._geometric(time) ** 2 * 2 * math.log(high / low)
        if self.family == "sub_vp":
            return self.beta(time) * -math.expm1(-2 * self._integral(time))
        return self.beta(time)

    def _integral(self, time: float) -> float:
        low, high = self.diffusion.beta_min, self.diffusion.beta_max
        return low * time + 0.5 * (high - low) * time**2

    def _geometric(self, time: float) -> float:
        low, high = self.diffusion.sigma_min, self.diffusion.sigma_max
        return float(low * (high / low) ** time)

    def _split(self, ratio: float) -> tuple[float, float]:
        """alpha and sigma of a ratio, as the family has them together."""
        if self.family == "ve":
            return 1.0, ratio
        if math.isinf(ratio):
            return 0.0, 1.0
        if self.family == "sub_vp":  # the root of alpha^2 + ratio alpha - 1, without cancellation
            alpha = 2 / (ratio + math.hypot(ratio, 2))
            return alpha, ratio * alpha
        alpha = 1 / math.hypot(1, ratio)
        return alpha, ratio * alpha

    def _ratios(self) -> NDArray[np.float64]:
        steps = self.train_steps
        if self.continuous:
            return np.array([self.at_time(self.time(t)).ratio for t in range(steps)])
        if self.diffusion.schedule == "ncsn":
            return np.geomspace(self.diffusion.sigma_min, self.diffusion.sigma_max, steps)
        bars = alpha_bar(self.diffusion)
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - bars) / bars)


def alpha_bar(diffusion: Diffusion) -> NDArray[np.float64]:
    """abar_t = prod_{s<=t} (1 - beta_s), t = 0 … train_steps - 1: shape (train_steps,), falling in [0, 1).

    ``linear``: beta_t from ``beta_start`` to ``beta_end`` ([1], section 4). ``scaled_linear``: the square
    roots of beta_t are linear ([7], its released code). ``sigmoid``: beta_t on a logistic curve from -6 to 6,
    as diffusers has it. ``squaredcos_cap_v2`` = ``cosine``: [6], equation 17, with s = 0.008 and beta_t
    limited to 0.999; the betas given do not enter. ``zero_terminal_snr`` shifts and stretches sqrt(abar)
    until the last is 0 ([8], algorithm 1).
    """
    start, end, steps = diffusion.beta_start, diffusion.beta_end, diffusion.train_steps
    if diffusion.schedule == "linear":
        betas = np.linspace(start, end, steps)
    elif diffusion.schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif diffusion.schedule == "sigmoid":
        betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    elif diffusion.schedule in ("squaredcos_cap_v2", "cosine"):
        t = np.arange(steps + 1, dtype=np.float64) / steps
        f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        raise ValueError(f"{diffusion.schedule!r} has no betas")
    bars = np.cumprod(1 - betas, dtype=np.float64)
    if diffusion.zero_terminal_snr:
        roots = np.sqrt(bars)
        bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return bars
