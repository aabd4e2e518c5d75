"""The noise schedule and the few-step sampler that training and evaluation on the torch side use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRAIN_STEPS = 1000


def alphas_cumprod(steps: int = TRAIN_STEPS) -> Tensor:
    """Share of the signal's power left after each step: squared cosine (Nichol & Dhariwal, 2021, eq. 17)."""

    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0).float()


def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor, alphas: Tensor) -> Tensor:
    """The forward process at integer steps ``timestep`` (N,)."""
    share = alphas[timestep].view(-1, 1, 1, 1)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


@torch.no_grad()
def ddim(model: torch.nn.Module, condition: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Deterministic sampling (Song et al., ICLR 2021, eta 0), steps spaced evenly and ending at the first."""
    alphas = alphas_cumprod()
    times = [round(TRAIN_STEPS * (i + 1) / steps) - 1 for i in range(steps)][::-1]
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(condition.shape, generator=generator)
    for index, time in enumerate(times):
        stamp = torch.full((len(sample),), float(time))
        clean = model(sample, condition, stamp).float().clamp(-1, 1)
        if index == len(times) - 1:
            return clean
        noise = (sample - alphas[time].sqrt() * clean) / (1 - alphas[time]).sqrt()
        later = alphas[times[index + 1]]
        sample = later.sqrt() * clean + (1 - later).sqrt() * noise
    raise ValueError("sampling needs at least one step")
