"""Samplers of the stochastic differential equations of [3], and annealed Langevin dynamics of [10].

dx = f(t) x dt + g(t) dw is run backwards from time 1 to ``sampling_eps``, in ``steps`` even times (the
authors' N). A *predictor* goes from one time to the next; before it, a *corrector* may take steps of Langevin
dynamics at one time ([3], section 4.2 and algorithms 2 to 5). The last step adds no noise. The score is that
of the limited clean estimate, (alpha x_0 - x) / sigma^2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pacs_node.infer.sampling import spacing
from pacs_node.infer.sampling.noise import Level, Noise
from pacs_node.infer.sampling.step import Plan, Step

if TYPE_CHECKING:
    from pacs_node.infer.tables import Sampler


def plan(noise: Noise, sampler: Sampler, steps: int) -> Plan:
    """The plan of one of these samplers."""
    if sampler.name == "langevin":
        return langevin(noise, sampler, steps)
    if sampler.name == "probability_flow":
        return probability_flow(noise, steps)
    walk: list[Step] = []
    for i, time in enumerate(np.linspace(1, noise.eps, steps)):
        level = noise.at_time(float(time))
        drift, score, noise_factor = _PREDICTORS[sampler.name](noise, float(time), i, steps)
        walk += _correctors(noise, sampler, level, i, steps)
        walk.append(_along_score(level, drift, score, noise_factor if i < steps - 1 else 0.0))
    return Plan(_prior(noise), tuple(walk))


def _prior(noise: Noise) -> float:
    return noise.at_time(1.0).sigma if noise.family == "ve" else 1.0


def _along_score(level: Level, drift: float, score: float, noise: float) -> Step:
    """x_s = drift x + score * score(x) + noise z."""
    sigma = level.sigma**2
    return Step(level, clean=score * level.alpha / sigma, noisy=drift - score / sigma, noise=noise)


def _correctors(noise: Noise, sampler: Sampler, level: Level, i: int, steps: int) -> Iterator[Step]:
    """[3], algorithms 4 (VE) and 5 (VP): e = 2 alpha_i (snr |z| / |score|)^2, alpha_i = 1 for VE."""
    alpha = 1.0 if noise.family == "ve" else 1 - _beta(noise, i, steps)
    for _ in range(sampler.corrector_steps):
        yield Step(level, noisy=1.0, langevin=2 * sampler.snr**2 * alpha)


def _beta(noise: Noise, i: int, steps: int) -> float:
    """beta of the Markov chain of ``steps`` levels whose limit the VP equation is ([3], appendix B)."""
    return noise.beta(1 - i / (steps - 1)) / steps


def _sigmas(noise: Noise, i: int, steps: int) -> tuple[float, float]:
    """sigma of that chain's level and of the next, 0 at the end ([3], equation 32)."""
    low, high = noise.diffusion.sigma_min, noise.diffusion.sigma_max
    chain = [low * (high / low) ** ((steps - 1 - k) / (steps - 1)) for k in (i, i + 1)]
    return chain[0], chain[1] if i < steps - 1 else 0.0


def _reverse_diffusion(noise: Noise, time: float, i: int, steps: int) -> tuple[float, float, float]:
    """[3], equation 46, algorithms 2 and 3: cut as the forward chain is; sub-VP, which has none, evenly."""
    if noise.family == "sub_vp":
        return _euler_maruyama(noise, time, i, steps)
    if noise.family == "ve":
        sigma, following = _sigmas(noise, i, steps)
        return 1.0, sigma**2 - following**2, math.sqrt(sigma**2 - following**2)
    beta = _beta(noise, i, steps)
    return 2 - math.sqrt(1 - beta), beta, math.sqrt(beta)


def _euler_maruyama(noise: Noise, time: float, i: int, steps: int) -> tuple[float, float, float]:
    """Euler and Maruyama on [3], equation 6, in strides of 1 / steps, as the authors and diffusers do."""
    squared = noise.diffusion_squared(time)
    return 1 - noise.drift(time) / steps, squared / steps, math.sqrt(squared / steps)


def _ancestral(noise: Noise, time: float, i: int, steps: int) -> tuple[float, float, float]:
    """[3], appendix F: VE, equation 47, and VP, equation 4."""
    if noise.family == "ve":
        sigma, following = _sigmas(noise, i, steps)
        removed = sigma**2 - following**2
        return 1.0, removed, following / sigma * math.sqrt(removed)
    beta = _beta(noise, i, steps)
    return 1 / math.sqrt(1 - beta), beta / math.sqrt(1 - beta), math.sqrt(beta)


_PREDICTORS = {
    "reverse_diffusion": _reverse_diffusion,
    "euler_maruyama": _euler_maruyama,
    "ancestral": _ancestral,
}


def probability_flow(noise: Noise, steps: int) -> Plan:
    """The probability-flow ODE ([3], equation 13) by Heun's method in time, ``steps`` strides from 1 to eps.

        dx / dt = f x - g^2 / 2 * score

    The clean estimate at the end takes out what noise eps leaves. Two evaluations a stride, and one.
    """
    times = [float(t) for t in np.linspace(1, noise.eps, steps + 1)]
    stride = (noise.eps - 1) / steps
    walk: list[Step] = []
    for time, following in itertools.pairwise(times):
        (level, a, b), (target, c, d) = (_slope(noise, t) for t in (time, following))
        walk.append(Step(level, clean=stride * b, noisy=1 + stride * a, keep=True))
        # b + stride / 2 * (a b + b x_0' + c x + d x_0)
        half = stride / 2
        walk.append(Step(target, clean=half * d, last=half * b, noisy=half * c, base=1 + half * a))
    return Plan(_prior(noise), (*walk, Step(noise.at_time(noise.eps), clean=1.0)))


def _slope(noise: Noise, time: float) -> tuple[Level, float, float]:
    """The level at ``time``, and dx / dt there as factors of x and of the clean estimate."""
    level = noise.at_time(time)
    half = 0.5 * noise.diffusion_squared(time) / level.sigma**2
    return level, noise.drift(time) + half, -half * level.alpha


def langevin(noise: Noise, sampler: Sampler, steps: int) -> Plan:
    """Annealed Langevin dynamics ([10], algorithm 1): ``langevin_steps`` steps at each of ``steps`` levels.

        x <- x + a_i / 2 * score + sqrt(a_i) z,   a_i = step_size * sigma_i^2 / sigma_L^2

    It starts from noise of the first level's strength and ends with the clean estimate at the last, as the
    second paper of [10] does ("denoise"). The levels are the model's, evenly thinned out if ``steps`` are
    fewer.
    """
    levels = [noise.at(t) for t in spacing.timesteps(noise.train_steps, steps, "linspace")]
    smallest = levels[-1].sigma
    walk: list[Step] = []
    for level in levels:
        size = sampler.step_size * (level.sigma / smallest) ** 2
        walk += [_along_score(level, 1.0, size / 2, math.sqrt(size))] * sampler.langevin_steps
    return Plan(levels[0].sigma, (*walk, Step(levels[-1], clean=1.0)))
