"""Which of a model's levels a sampler visits, falling; where samplers differ, each as in diffusers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pacs_node.infer.sampling.noise import LARGEST_RATIO, Level, Noise

if TYPE_CHECKING:
    from pacs_node.infer.tables import Sampler

RHO = 7.0  # [11], equation 5


def timesteps(train_steps: int, steps: int, spacing: str) -> list[int]:
    """Which ``steps`` of the ``train_steps`` levels are visited: [8], table 2.

    ``leading``: 0, k, 2k … with k = train_steps // steps, so it never starts from pure noise but ends at
    level 0. ``trailing``: from the last level in equal strides, so it starts where the prior is.
    ``linspace``: evenly from the last level to level 0. Raises ValueError if there are fewer levels.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be 1 to {train_steps}, not {steps}")
    if spacing == "leading":
        return [i * (train_steps // steps) for i in reversed(range(steps))]
    if spacing == "linspace":
        return [round(float(t)) for t in np.linspace(0, train_steps - 1, steps)[::-1]]
    # Halves go to even and products are rounded as in the implementations that models are tuned with. Those
    # visit one level more, -1, where the last product falls short of 0.
    return [round(float(t)) - 1 for t in np.arange(train_steps, 0, -train_steps / steps)[:steps]]


def numbered(noise: Noise, sampler: Sampler, steps: int) -> list[Level]:
    """Whole levels, as DDPM and DDIM visit them."""
    return [noise.at(t) for t in timesteps(noise.train_steps, steps, sampler.spacing)]


def consistency(noise: Noise, sampler: Sampler, steps: int) -> list[Level]:
    """``steps`` of the ``original_steps`` levels that a consistency model was distilled on [12]."""
    original = sampler.original_steps
    k = noise.train_steps // original
    return [noise.at((original - math.floor(i * original / steps)) * k - 1) for i in range(steps)]


def interpolated(noise: Noise, sampler: Sampler, steps: int) -> list[Level]:
    """Levels of Euler's and Heun's methods: ``linspace`` falls between whole ones."""
    if sampler.spacing == "linspace":
        places = [float(t) for t in np.linspace(0, noise.train_steps - 1, steps)[::-1]]
    else:
        places = [float(t) for t in timesteps(noise.train_steps, steps, sampler.spacing)]
    levels = [_finite(noise, noise.at(t)) for t in places]
    if sampler.sigmas == "spaced":
        return levels
    ratios = _anew(levels[0].ratio, levels[-1].ratio, steps, sampler.sigmas)
    return [noise.of_ratio(ratio, noise.place(ratio)) for ratio in ratios]


def dpm(noise: Noise, sampler: Sampler, steps: int) -> list[Level]:
    """Levels of DPM-Solver++: the last step to noise-free counts, so there is one more to divide by.

    Karras and exponential spacing are told to the network in whole time steps, as diffusers does: rounded, or
    cut off where its int64 does so.
    """
    trained, schedule = noise.train_steps, noise.diffusion.schedule
    if sampler.sigmas != "spaced":
        top, bottom = (_finite(noise, noise.at(t)).ratio for t in (trained - 1, 0))
        rounds = sampler.sigmas == "karras" and (
            schedule not in ("squaredcos_cap_v2", "cosine") or sampler.name == "dpmpp_singlestep"
        )
        levels = []
        for ratio in _anew(top, bottom, steps, sampler.sigmas):
            place = noise.place(ratio)
            if not noise.continuous:
                # 1e-9: the ends are exact levels, whatever their logarithms round to.
                place = float(round(place) if rounds else math.floor(place + 1e-9))
            levels.append(noise.of_ratio(ratio, place))
        return levels
    if sampler.spacing == "trailing":
        places = timesteps(trained, steps, "trailing")
    elif sampler.spacing == "leading":
        places = [i * (trained // (steps + 1)) for i in range(steps, 0, -1)]
    else:
        places = [round(float(t)) for t in np.linspace(0, trained - 1, steps + 1)[:0:-1]]
    return [_finite(noise, noise.at(t)) for t in places]


def _finite(noise: Noise, level: Level) -> Level:
    return level if level.alpha else noise.of_ratio(LARGEST_RATIO, level.t)


def _anew(top: float, bottom: float, steps: int, kind: str) -> list[float]:
    """Ratios from ``top`` to ``bottom``: [11], equation 5, or evenly in the logarithm."""
    ramp = np.linspace(0, 1, steps)
    if kind == "exponential":
        return [float(r) for r in np.exp(math.log(top) + ramp * (math.log(bottom) - math.log(top)))]
    roots = top ** (1 / RHO) + ramp * (bottom ** (1 / RHO) - top ** (1 / RHO))
    return [float(r) for r in roots**RHO]
