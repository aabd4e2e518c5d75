"""The denoiser: a small U-Net on 2 x 2 patches that corrects the low-quality image it is conditioned on.

After SR3 (Saharia et al., TPAMI 2022) and DiffusionXRay (Mohsin Hasan et al., DEMI 2025): the noisy and the
low-quality image go in side by side. It predicts the clean image ("sample") as the low-quality one plus a
correction, so that an untrained net hardly changes an image. Features are
normalised at each pixel, never over the plane: a crop and a whole image behave alike.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.restoration.diffusion import TRAIN_STEPS

CORRECTION = 0.1


@dataclass(frozen=True)
class Shape:
    """Widths of the levels at 1/2, 1/4, 1/8 and 1/16 of the side.

    Blocks per level and the time embedding's width.
    """

    widths: tuple[int, ...] = (32, 64, 128, 160)
    blocks: tuple[int, ...] = (1, 1, 2, 3)
    time: int = 128


class Block(nn.Module):
    """Residual block whose inner features are scaled and shifted by the time step and the image's context."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.first = nn.Conv2d(width, width, 3, 1, 1)
        self.modulation = nn.Linear(time, 2 * width)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        size = (x.square().mean(1, keepdim=True) + 1e-4).sqrt()
        even = x / size * self.gain[:, None, None]
        return x + self.second(F.silu(self.first(even) * (1 + scale) + shift))


class Denoiser(nn.Module):
    """(sample, condition, timestep) -> clean image; planes (N, 1, H, W) in [-1, 1].

    H and W multiples of 16.
    """

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        w = shape.widths
        self.time = nn.Sequential(nn.Linear(64, shape.time), nn.SiLU(), nn.Linear(shape.time, shape.time))
        self.stem = nn.Conv2d(12, w[0], 3, 1, 1)
        self.context = nn.Sequential(
            nn.Linear(2 * w[-1], shape.time), nn.SiLU(), nn.Linear(shape.time, shape.time)
        )
        self.down_blocks = nn.ModuleList(self._level(i) for i in range(len(w)))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in itertools.pairwise(w))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(w))
        self.up_blocks = nn.ModuleList(self._level(i) for i in range(len(w) - 1))
        self.head = nn.Conv2d(w[0], 4, 3, 1, 1)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.zeros_(self.head.bias)

    def _level(self, index: int) -> nn.ModuleList:
        return nn.ModuleList(
            Block(self.shape.widths[index], self.shape.time) for _ in range(self.shape.blocks[index])
        )

    @staticmethod
    def precondition(sample: Tensor, condition: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the net is given (N, 3, H, W), what is kept (N, 1, H, W), the factor on its correction.

        sample = a clean + s noise, so sample - a condition = a correction + s noise, and for a correction
        of deviation ``CORRECTION`` the best linear estimate of it is known (Wiener; the preconditioning of
        Karras et al., NeurIPS 2022, about the low-quality image). The net adds to that estimate; far from
        the end, where the sample is all noise, it sees next to nothing of it. Third channel: the
        condition's fine detail, amplified.
        """
        angle = ((timestep + 1) / TRAIN_STEPS + 0.008) / 1.008 * (math.pi / 2)
        share = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).square().clamp(1e-6, 1 - 1e-6)
        share = share[:, None, None, None]
        spread = share * CORRECTION**2 + 1 - share
        estimate = share.sqrt() * CORRECTION**2 / spread * (sample - share.sqrt() * condition)
        free = CORRECTION * ((1 - share) / spread).sqrt()
        mean = F.avg_pool2d(F.pad(condition, (2,) * 4, mode="replicate"), 5, stride=1)
        given = torch.cat([estimate / CORRECTION, condition, 8 * (condition - mean)], dim=1)
        return given, condition + estimate, free

    def forward(self, sample: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        given, kept, free = self.precondition(sample, condition, timestep)
        x = self.stem(F.pixel_unshuffle(given, 2))
        frequencies = torch.exp(
            torch.arange(32, dtype=torch.float32, device=sample.device) * (-math.log(10000.0) / 31)
        )
        angles = timestep[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        skips = []
        for index, level in enumerate(self.down_blocks):
            if index == len(self.down_blocks) - 1:
                mean = x.mean((2, 3))
                deviation = ((x - mean[:, :, None, None]).square().mean((2, 3)) + 1e-4).sqrt()
                time = time + self.context(torch.cat([mean, deviation], dim=1))
            for block in level:
                x = block(x, time)
            skips.append(x)
            if index < len(self.downs):
                x = self.downs[index](x)
        for index in reversed(range(len(self.ups))):
            x = F.interpolate(self.ups[index](x), scale_factor=2.0) + skips[index]
            for block in self.up_blocks[index]:
                x = block(x, time)
        return kept + free * F.pixel_shuffle(self.head(F.silu(x)), 2)
