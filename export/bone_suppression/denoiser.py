"""The denoiser: a U-Net over latents, conditioned on the radiograph's latent, that predicts the soft
tissue's.

BS-LDM's conditioning (noisy soft tissue and radiograph side by side), smaller. It predicts the clean latent
("sample") as
the radiograph's plus a correction that starts at zero: untrained, it suppresses nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Shape:
    """Channels of a latent, widths of the levels at 1, 1/2 and 1/4 of the latent's side, the time
    embedding's width.
    """

    latent: int = 4
    widths: tuple[int, ...] = (64, 128, 192)
    time: int = 128


class Block(nn.Module):
    """Residual block, scaled and shifted by the time step."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, before), nn.GroupNorm(8, after)
        self.first = nn.Conv2d(before, after, 3, 1, 1)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        self.modulation = nn.Linear(time, 2 * after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        inner = self.norm_out(self.first(F.silu(self.norm_in(x)))) * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(inner))


class Denoiser(nn.Module):
    """(sample, condition, timestep) -> clean latent; latents (N, C, h, w), h and w multiples of 4."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        widths, time = shape.widths, shape.time
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(2 * shape.latent, widths[0], 3, 1, 1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for width in widths:
            self.down.append(nn.ModuleList([Block(before, width, time), Block(width, width, time)]))
            before = width
        self.shrink.extend(nn.Conv2d(w, w, 3, 2, 1) for w in widths[:-1])
        self.middle = nn.ModuleList([Block(before, before, time) for _ in range(2)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths):
            self.up.append(nn.ModuleList([Block(before + width, width, time), Block(width, width, time)]))
            before = width
        self.grow.extend(nn.Conv2d(w, w, 3, 1, 1) for w in reversed(widths[1:]))
        self.head = nn.Sequential(
            nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, shape.latent, 3, 1, 1)
        )
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)

    def forward(self, sample: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        frequencies = torch.exp(
            torch.arange(32, dtype=torch.float32, device=sample.device) * (-math.log(10000.0) / 32)
        )
        angles = timestep[:, None] * frequencies
        time = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        x = self.stem(torch.cat([sample, condition], dim=1))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, time)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.middle:
            x = block(x, time)
        for level, blocks in enumerate(self.up):
            x = torch.cat([x, skips.pop()], dim=1)
            for block in blocks:
                x = block(x, time)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0))
        return condition + self.head(x)
