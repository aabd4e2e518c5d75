"""Features for the perceptual loss that need no download: how strong edges are, by direction and octave.

Measured on 6 radiographs (256 px; distortions of one and the same error of 1% or 2%): how often a distance
ranks one that destroys structure (blur, JPEG, blocks, ringing, blotches, median) above one that does not
(gain, offset, gamma, shading, a shift by half a pixel). The squared error: 0.57 and 0.43, chance. A random
VGG-like network: 0.88 and 0.92. The committed anomaly model's extractor: 0.97 and 0.97. These features: 0.99
and 0.97, in the least time; a second order (edges among the edges): 0.99 and 0.97, at three times the cost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.bone_suppression.losses import Perceptual

ORIENTATIONS, OCTAVES, SIDE, WAVELENGTH = 8, 4, 9, 4.0
#: Joins the strengths as one more channel, so that places without any edge are not blown up to length 1.
NOTHING = 0.02


def gabor() -> Tensor:
    """Cosine and sine filters (2 x ORIENTATIONS, 1, SIDE, SIDE) without mean, each of norm 1."""
    half = SIDE // 2
    y, x = torch.meshgrid(*(torch.arange(-half, half + 1, dtype=torch.float32),) * 2, indexing="ij")
    bell = torch.exp(-(x.square() + y.square()) / (2 * (SIDE / 4.5) ** 2))
    filters = []
    for number in range(ORIENTATIONS):
        angle = math.pi * number / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        for wave in (phase.cos(), phase.sin()):
            level = bell * (wave - (bell * wave).sum() / bell.sum())
            filters.append(level / level.norm())
    return torch.stack(filters)[:, None]


class Edges(nn.Module):
    """(N, 1, H, W) -> of each octave (N, ORIENTATIONS + 1, h, w): the modulus of a direction's two phases.

    The first order of a scattering transform (Bruna, Mallat, TPAMI 2013).
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", gabor())

    def forward(self, image: Tensor) -> list[Tensor]:
        found = []
        for octave in range(OCTAVES):
            x = F.avg_pool2d(image, 2**octave) if octave else image
            waves = F.conv2d(x, self.filters, padding=SIDE // 2).float().unflatten(1, (-1, 2))
            strength = (waves.square().sum(2) + 1e-6).sqrt()
            found.append(torch.cat([strength, torch.full_like(strength[:, :1], NOTHING)], dim=1))
        return found


def features() -> Perceptual:
    """The perceptual distance where no network is given."""
    return Perceptual(Edges())
