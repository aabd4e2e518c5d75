"""Samplers that walk from level to level: DDPM, DDIM, Euler, Heun, DPM-Solver++, consistency sampling.

They hold for every family of noise: all of them solve, for x / alpha, the same equation in the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pacs_node.infer.sampling import sde, spacing
from pacs_node.infer.sampling.noise import CLEAN, Level, Noise
from pacs_node.infer.sampling.step import Plan, Step

if TYPE_CHECKING:
    from pacs_node.infer.tables import Sampler


def plan(noise: Noise, sampler: Sampler, steps: int) -> Plan:
    """The plan of a card's [sampler] in ``steps`` steps; it must be free of ``rules.trouble``."""
    name = sampler.name
    if name == "ddpm":
        return _from_prior(noise, ddim(spacing.numbered(noise, sampler, steps), eta=1.0))
    if name == "ddim":
        return _from_prior(noise, ddim(spacing.numbered(noise, sampler, steps), sampler.eta))
    if name == "lcm":
        return _from_prior(noise, lcm(spacing.consistency(noise, sampler, steps)))
    if name in ("euler", "euler_ancestral", "heun"):
        levels = spacing.interpolated(noise, sampler, steps)
        walk = heun(levels) if name == "heun" else ddim(levels, eta=float(name == "euler_ancestral"))
        # "leading" starts below the last level, with some signal: diffusers then starts from unit variance.
        start = 1.0 if noise.family == "vp" and sampler.spacing == "leading" else levels[0].sigma
        return Plan(start, tuple(walk))
    if name in ("dpmpp_multistep", "sde_dpmpp"):
        levels = spacing.dpm(noise, sampler, steps)
        return _from_prior(noise, multistep(levels, sampler.order, stochastic=name == "sde_dpmpp"))
    if name == "dpmpp_singlestep":
        return _from_prior(noise, singlestep(spacing.dpm(noise, sampler, steps), sampler.order))
    return sde.plan(noise, sampler, steps)


def _from_prior(noise: Noise, steps: Sequence[Step]) -> Plan:
    """From unit variance, or from sigma alone where the noise explodes."""
    return Plan(steps[0].level.sigma if noise.family == "ve" else 1.0, tuple(steps))


def ddim(levels: Sequence[Level], eta: float = 0.0) -> list[Step]:
    """DDIM ([2], equations 12, 16) over the visited ``levels``; it ends noise-free.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - noise^2) e + noise z,   e = (x_t - alpha_t x_0) / sigma_t
        noise = eta (sigma_s / sigma_t) sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)

    e is taken from the limited clean estimate, so that the two always make up x_t (diffusers'
    ``use_clipped_model_output``, which its DDPM does too). The next level is the next one visited; diffusers'
    DDIM takes train_steps // steps below, another level where that leaves a remainder.

    ``eta`` = 0 is deterministic: Euler's method in the ratio, and DPM-Solver++ of order 1. ``eta`` = 1 is
    DDPM's posterior with variance beta-tilde ([1], equations 6, 7; [2], section 4.1), the ancestral Euler
    method, and SDE-DPM-Solver++ of order 1.
    """
    steps = []
    for level, following in pairwise([*levels, CLEAN]):
        noise = 0.0
        if eta:
            kept = level.alpha / following.alpha * following.sigma
            # max: rounding may leave -1e-17 where the two levels are one.
            noise = eta * following.sigma / level.sigma * math.sqrt(max(level.sigma**2 - kept**2, 0.0))
        noisy = math.sqrt(max(following.sigma**2 - noise**2, 0.0)) / level.sigma
        steps.append(Step(level, clean=following.alpha - level.alpha * noisy, noisy=noisy, noise=noise))
    return steps


def lcm(levels: Sequence[Level], sigma_data: float = 0.5, scaling: float = 10.0) -> list[Step]:
    """Consistency sampling ([12], algorithm 3): the clean estimate, noised anew to the next level.

    The consistency function is c_skip x_t + c_out x_0 with the boundary scalings of diffusers' LCMScheduler,
    c_skip = d^2 / (u^2 + d^2), c_out = u / sqrt(u^2 + d^2), u = ``scaling`` t, d = ``sigma_data``.
    """
    steps = []
    for level, following in pairwise([*levels, CLEAN]):
        u = scaling * level.t
        skip, out = sigma_data**2 / (u**2 + sigma_data**2), u / math.hypot(u, sigma_data)
        alpha = following.alpha
        steps.append(Step(level, clean=alpha * out, noisy=alpha * skip, noise=following.sigma))
    return steps


def heun(levels: Sequence[Level]) -> list[Step]:
    """Heun's method in the ratio ([11], algorithm 1 without churn): Euler's step, then with the mean slope.

    The last step, to noise-free, is Euler's alone: twice ``levels`` less one evaluations.
    """
    steps: list[Step] = []
    for level, following in pairwise(levels):
        noisy = following.sigma / level.sigma
        steps.append(Step(level, clean=following.alpha - level.alpha * noisy, noisy=noisy, keep=True))
        # With r the ratios, y = x / alpha:  y_s = b + (r_s - r_t) / 2 * ((b - x_0') / r_t + (y - x_0) / r_s)
        first, second = (0.5 * (following.ratio - level.ratio) / at.ratio for at in (level, following))
        steps.append(
            Step(
                following,
                clean=-following.alpha * second,
                last=-following.alpha * first,
                noisy=second,
                base=following.alpha / level.alpha * (1 + first),
            )
        )
    return [*steps, *ddim(levels[-1:])]


@dataclass(frozen=True)
class _Stride:
    """From one level to another in the half log-SNR: what the formulas of [4] have in common.

    ``stochastic`` is [4]'s SDE form: twice the length in the exponentials, and noise.
    """

    level: Level
    following: Level
    stochastic: bool = False

    @property
    def length(self) -> float:
        """h = lambda_s - lambda_t."""
        return half_log_snr(self.following) - half_log_snr(self.level)

    @property
    def _exponent(self) -> float:
        return self.length * (2 if self.stochastic else 1)

    @property
    def point(self) -> float:
        """Of the starting point."""
        decay = math.exp(-self.length) if self.stochastic else 1.0
        return self.following.sigma / self.level.sigma * decay

    @property
    def noise(self) -> float:
        """Of the noise."""
        return self.following.sigma * math.sqrt(-math.expm1(-2 * self.length)) if self.stochastic else 0.0

    @property
    def value(self) -> float:
        """Of the clean estimate at the start."""
        return self.following.alpha * -math.expm1(-self._exponent)

    @property
    def slope(self) -> float:
        """Of its first derivative, times h."""
        return self.following.alpha * (1 + math.expm1(-self._exponent) / self._exponent)

    @property
    def curvature(self) -> float:
        """Of its second derivative, times h^2; in the deterministic form."""
        h = self._exponent
        return self.following.alpha * (0.5 - (h + math.expm1(-h)) / h**2)


def multistep(levels: Sequence[Level], order: int, *, stochastic: bool = False) -> list[Step]:
    """DPM-Solver++(1), (2M), (3M) of [4] (algorithm 2, midpoint form), or the SDE form of order 1 and 2.

    Each step takes the clean estimates of the steps before for derivatives. The last step, to noise-free, is
    of order 1; with fewer than 15 steps the one before of order 2 at most, as in diffusers. Its SDE form of
    order 3 does not become exact in the limit (its last term keeps a wrong sign), so there is none here.
    """
    steps = ddim(levels, eta=float(stochastic))
    for i in range(1, len(levels) - 1):
        possible = min(order, i + 1, 2 if len(levels) < 15 and i == len(levels) - 2 else order)
        if possible == 1:
            continue
        stride = _Stride(levels[i], levels[i + 1], stochastic)
        r0 = (half_log_snr(levels[i]) - half_log_snr(levels[i - 1])) / stride.length
        # Derivatives as combinations of the last three clean estimates (now, last, before).
        clean, last, before = stride.value, 0.0, 0.0
        if possible == 2:
            clean, last = clean + 0.5 * stride.value / r0, -0.5 * stride.value / r0
        else:
            r1 = (half_log_snr(levels[i - 1]) - half_log_snr(levels[i - 2])) / stride.length
            newer, older = (1 / r0, -1 / r0, 0.0), (0.0, 1 / r1, -1 / r1)
            bent = [(n - o) / (r0 + r1) for n, o in zip(newer, older, strict=True)]
            sloped = [n + r0 * b for n, b in zip(newer, bent, strict=True)]
            terms = [stride.slope * s + stride.curvature * b for s, b in zip(sloped, bent, strict=True)]
            clean, last, before = clean + terms[0], terms[1], terms[2]
        steps[i] = Step(
            levels[i], clean=clean, last=last, before=before, noisy=stride.point, noise=stride.noise
        )
    return steps


def singlestep(levels: Sequence[Level], order: int) -> list[Step]:
    """DPM-Solver++(2S), (3S) of [4] (algorithm 1, midpoint form), cut to whole evaluations as diffusers does.

    Groups of ``order`` levels: the first step of a group keeps its point, and each further one starts there
    again with one more estimate. The last step, to noise-free, is of order 1.
    """
    steps = []
    for i, possible in enumerate(_orders(len(levels), order)):
        following = levels[i + 1] if i + 1 < len(levels) else CLEAN
        if possible == 1:
            (step,) = ddim([levels[i]]) if following is CLEAN else ddim([levels[i], following])[:1]
            steps.append(Step(levels[i], clean=step.clean, noisy=step.noisy, keep=True))
            continue
        start = levels[i - possible + 1]
        stride = _Stride(start, following)
        reach = (half_log_snr(levels[i]) - half_log_snr(start)) / stride.length
        term = (0.5 * stride.value if possible == 2 else stride.slope) / reach
        earlier = stride.value - term
        steps.append(
            Step(
                levels[i],
                clean=term,
                last=earlier if possible == 2 else 0.0,
                before=earlier if possible == 3 else 0.0,
                base=stride.point,
            )
        )
    return steps


def _orders(steps: int, order: int) -> list[int]:
    """The order of each step: groups 1 … ``order``, the rest in shorter ones, the last of order 1."""
    if order == 3 and steps % 3 == 0:
        orders = [1, 2, 3] * (steps // 3 - 1) + [1, 2, 1]
    elif order == 2 and steps % 2 == 0:
        orders = [1, 2] * (steps // 2 - 1) + [1, 1]
    else:
        orders = (list(range(1, order + 1)) * steps)[:steps]
    return [*orders[:-1], 1]


def half_log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma) ([4])."""
    return math.log(level.alpha / level.sigma)
