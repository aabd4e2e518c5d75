"""Sampling from a diffusion model: noise schedules, what the network predicts, and the steps from noise on.

One notation for the literature. At noise level t a sample is x_t = alpha_t x_0 + sigma_t e with e ~ N(0, 1):

    here       DDPM [1]          DDIM [2]           SDE [3], VP        DPM-Solver++ [4]  diffusers
    alpha_t    sqrt(abar_t)      sqrt(alpha_t)      exp(-int beta/2)   alpha_t           sqrt(abar)
    sigma_t    sqrt(1 - abar_t)  sqrt(1 - alpha_t)  std of p_0t        sigma_t           sqrt(1 - abar)
    clean      x_0               f_theta            E[x_0 | x_t]       x_theta           pred_original_sample
    epsilon    eps_theta         eps_theta          -sigma_t * score   eps_theta         "epsilon"
    velocity                                                           v_theta [5]       "v_prediction"

The variance-exploding family of [3] is alpha = 1; the half log-SNR of [4] is log(alpha / sigma). A
network's prediction is first turned into the clean estimate, which alone may be limited. A sampler is then
a *plan*: a list of steps, each with the level at which the network is asked and the coefficients of an
affine update

    x_s = clean * x_0 + noisy * x_t + noise * z,      z ~ N(0, 1), drawn only where its factor is not 0.

DDPM and DDIM are such plans, and so are the consistency samplers, Euler-Maruyama on the SDEs of [3] and
their ODE; multistep solvers such as DPM-Solver++(2M) are affine in the last clean estimates too, one more
coefficient. A new sampler is a new function that makes a plan.

[1] Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models. NeurIPS 2020, arXiv 2006.11239
[2] Song, Meng, Ermon: Denoising Diffusion Implicit Models. ICLR 2021, arXiv 2010.02502
[3] Song et al.: Score-Based Generative Modeling through SDEs. ICLR 2021, arXiv 2011.13456
[4] Lu et al.: DPM-Solver++. 2022, arXiv 2211.01095
[5] Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models. ICLR 2022, arXiv 2202.00512
[6] Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models. ICML 2021, arXiv 2102.09672
[7] Rombach et al.: High-Resolution Image Synthesis with Latent Diffusion Models. CVPR 2022, arXiv 2112.10752
[8] Lin et al.: Common Diffusion Noise Schedules and Sample Steps are Flawed. WACV 2024, arXiv 2305.08891
[9] Sun et al.: BS-LDM: Effective Bone Suppression in High-Resolution Chest X-Ray Images with Conditional
    Latent Diffusion Models. JBHI 2025, arXiv 2412.15670
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ScheduleName = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "cosine"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing"]


def alpha_bar(
    schedule: ScheduleName, train_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NDArray[np.float64]:
    """abar_t = prod_{s<=t} (1 - beta_s), t = 0 … train_steps - 1: shape (train_steps,), falling in (0, 1).

    ``linear``: beta_t from ``beta_start`` to ``beta_end`` ([1], section 4). ``scaled_linear``: the square
    roots of beta_t are linear ([7], its released code). ``squaredcos_cap_v2`` = ``cosine``: [6], equation
    17, with s = 0.008 and beta_t limited to 0.999; the betas given do not enter. Raises ValueError on
    another name.
    """
    if schedule == "linear":
        betas = np.linspace(beta_start, beta_end, train_steps)
    elif schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, train_steps) ** 2
    elif schedule in ("squaredcos_cap_v2", "cosine"):
        t = np.arange(train_steps + 1, dtype=np.float64) / train_steps
        f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        raise ValueError(f"unknown noise schedule {schedule!r}")
    return np.cumprod(1 - betas, dtype=np.float64)


def timesteps(train_steps: int, steps: int, spacing: Spacing) -> list[int]:
    """Which ``steps`` of the ``train_steps`` levels are visited, falling.

    [8], table 2. ``leading``: 0, k, 2k … with k = train_steps // steps, so it never starts from pure noise
    but ends at level 0. ``trailing``: from the last level in equal strides, so it starts where the prior
    is.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be 1 to {train_steps}, not {steps}")
    if spacing == "leading":
        return [i * (train_steps // steps) for i in reversed(range(steps))]
    # np.round: halves to even, as the implementations that models are tuned with do.
    return [int(np.round(train_steps - i * train_steps / steps)) - 1 for i in range(steps)]


@dataclass(frozen=True)
class Step:
    """One step of a plan: the level (t, alpha, sigma) where the network is asked, and the update."""

    t: int
    alpha: float
    sigma: float
    clean: float
    noisy: float
    noise: float


def ddim(levels: NDArray[np.float64], visited: Sequence[int], eta: float = 0.0) -> list[Step]:
    """DDIM's plan ([2], equations 12, 16) over the visited ``levels`` (of alpha_bar); it ends noise-free.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - noise^2) e + noise z
        noise = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2),   e = (x_t - alpha_t x_0) / sigma_t

    e is taken from the limited clean estimate, so that the two always make up x_t. ``eta`` = 0 is
    deterministic.
    """
    steps = []
    for i, t in enumerate(visited):
        bar_t = float(levels[t])
        bar_s = float(levels[visited[i + 1]]) if i + 1 < len(visited) else 1.0
        noise = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
        alpha, sigma = math.sqrt(bar_t), math.sqrt(1 - bar_t)
        # max: rounding may leave -1e-17 at eta = 1 where sigma_s is 0.
        noisy = math.sqrt(max(1 - bar_s - noise**2, 0.0)) / sigma
        steps.append(Step(t, alpha, sigma, math.sqrt(bar_s) - alpha * noisy, noisy, noise))
    return steps


def ddpm(levels: NDArray[np.float64], visited: Sequence[int]) -> list[Step]:
    """DDPM's plan: the posterior q(x_s | x_t, x_0) of [1], equations 6 and 7, variance beta-tilde.

    Over a part of the levels, the beta of one step is 1 - abar_t / abar_s. This is DDIM at eta = 1 ([2],
    section 4.1).
    """
    return ddim(levels, visited, eta=1.0)


def plan(levels: NDArray[np.float64], name: str, steps: int, eta: float, spacing: Spacing) -> list[Step]:
    """The plan of the sampler called ``name`` in a model card. Raises ValueError on another name."""
    visited = timesteps(len(levels), steps, spacing)
    if name == "ddim":
        return ddim(levels, visited, eta)
    if name == "ddpm":
        return ddpm(levels, visited)
    raise ValueError(f"unknown sampler {name!r}")


def clean_estimate(prediction: Array, x: Array, kind: Prediction, alpha: float, sigma: float) -> Array:
    """x_0 from what the network predicted at x_t: itself, the noise ([1], equation 15), or the velocity.

    The velocity is v = alpha e - sigma x_0 ([5], appendix D), hence x_0 = alpha x_t - sigma v.
    """
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return np.asarray(alpha * x - sigma * prediction, np.float32)
    return np.asarray((x - sigma * prediction) / alpha, np.float32)


def sample(
    network: Callable[[Array, int], Array],
    shape: tuple[int, ...],
    steps: Sequence[Step],
    kind: Prediction,
    generator: np.random.Generator,
    limit: Callable[[int], float] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Array:
    """Walk a plan from noise to a sample: float32 of ``shape``, repeatable bit by bit.

    ``network(x_t, t)`` predicts in the sense of ``kind``; ``limit(t)`` bounds the clean estimate to
    +-limit: the temporal adaptive thresholding of [9], limit(t) = clip_start + clip_slope * t. ``on_step``
    is called after each step.
    """
    x = generator.standard_normal(shape, dtype=np.float32)
    for step in steps:
        clean = clean_estimate(network(x, step.t), x, kind, step.alpha, step.sigma)
        if limit is not None:
            clean = np.clip(clean, -limit(step.t), limit(step.t))
        x = step.clean * clean + step.noisy * x
        if step.noise:
            x += step.noise * generator.standard_normal(shape, dtype=np.float32)
        if on_step is not None:
            on_step()
    return x
