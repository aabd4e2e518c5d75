"""The extractor.

A small convolutional encoder and decoder that finds synthetic findings on normal radiographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Shape:
    """Sizes of the extractor; ``size`` is the side of its square input in pixels."""

    size: int = 256
    widths: tuple[int, ...] = (24, 32, 64, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 2, 2)


def normalise(image: Tensor) -> Tensor:
    """(N, 1, S, S) in [-1, 1] -> (N, 2, S, S): the exposure's brightness and contrast taken out.

    First channel: zero mean and unit deviation of the central 80%, bounded to +-3. Second: local contrast,
    the difference to the neighbourhood's mean over its deviation (a smooth relative of CLAHE that needs no
    histogram).
    """
    size = image.shape[-1]
    edge = size // 10
    centre = image[:, :, edge : size - edge, edge : size - edge]
    mean = centre.mean((2, 3), keepdim=True)
    deviation = (centre - mean).square().mean((2, 3), keepdim=True).sqrt()
    tone = ((image - mean) / (deviation + 0.02)).clamp(-3, 3)
    local = neighbourhood(tone)
    spread = neighbourhood((tone - local).square())
    return torch.cat([tone, ((tone - local) / (spread + 0.02).sqrt()).clamp(-3, 3)], dim=1)


def neighbourhood(x: Tensor) -> Tensor:
    """Mean over a neighbourhood of about an eighth of the side.

    By way of a coarse grid (cheap and exportable).
    """
    coarse = F.avg_pool2d(x, 8)
    coarse = F.avg_pool2d(F.pad(coarse, (1,) * 4, mode="replicate"), 3, stride=1)
    coarse = F.avg_pool2d(F.pad(coarse, (1,) * 4, mode="replicate"), 3, stride=1)
    return F.interpolate(coarse, scale_factor=8.0, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation and a shortcut; ``stride`` 2 halves the plane."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride) if (inner, stride) != (outer, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class Up(nn.Module):
    """Doubles the plane and merges the encoder's features of that size."""

    def __init__(self, inner: int, skip: int, outer: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(inner + skip, outer, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.relu(self.norm(self.merge(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))))


@dataclass
class Output:
    """What the extractor says of images of side S (all float tensors).

    ``change`` (N, 2, S/4, S/4): logit that a finding covers the place; its estimated brightening. ``image``
    (N,): logit that there is any. ``conditions`` (N, 3): estimates of age / 100, sex and view. ``patches``
    (N, C, S/16, S/16): features for the Gaussian.
    """

    change: Tensor
    image: Tensor
    conditions: Tensor
    patches: Tensor


class Extractor(nn.Module):
    """Encoder (to S/32), decoder (to S/4) and heads; see :class:`Output`."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        w = shape.widths
        self.stem = nn.Sequential(
            nn.Conv2d(2, w[0], 5, 2, 2, bias=False), nn.BatchNorm2d(w[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(Block(w[i], w[i + 1], 2), *(Block(w[i + 1], w[i + 1]) for _ in range(count - 1)))
            for i, count in enumerate(shape.blocks)
        )
        self.ups = nn.ModuleList([Up(w[4], w[3], w[3]), Up(w[3], w[2], w[2]), Up(w[2], w[1], w[1])])
        self.change = nn.Conv2d(w[1], 2, 1)
        self.dropout = nn.Dropout(0.2)
        self.image = nn.Linear(2 * w[4], 1)
        self.conditions = nn.Linear(2 * w[4], 3)

    def forward(self, image: Tensor) -> Output:
        """``image``: (N, 1, S, S) in [-1, 1]."""
        x = self.stem(normalise(image))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        pooled = self.dropout(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))
        patches = y = self.ups[0](x, levels[2])
        y = self.ups[2](self.ups[1](y, levels[1]), levels[0])
        return Output(self.change(y), self.image(pooled)[:, 0], self.conditions(pooled), patches)
