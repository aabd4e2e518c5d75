"""ML-VQGAN, the autoencoder of BS-LDM and GL-LCM, under its published parameter names.

Image (N, 1, H, W) in [-1, 1] -> latent (N, 4, H/8, W/8) -> the nearest of 256 (GL-LCM: 1024) codes a place ->
image. BS-LDM: Sun et al., arXiv 2412.15670, section III-A; the network is the VQ-VAE of Tudosiu et al.,
arXiv 2209.03177, as MONAI's generative models 0.2.2 have it, which the published checkpoints are pickles of.
A state dict of theirs loads here with ``strict=True``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Shape:
    """The full-size network by default; ``channels`` at 1/2, 1/4, 1/8 … of the side.

    ``residual``: channels inside the residual blocks, of which each level has ``blocks``. ``decay`` and
    ``commitment`` matter in training alone: of the codes' moving averages, and the weight of the loss that
    holds the encoder to the codes (both MONAI's defaults, which the authors keep).
    """

    channels: tuple[int, ...] = (128, 256, 512)
    residual: int = 512
    blocks: int = 2
    codes: int = 256
    code_dimension: int = 4
    decay: float = 0.5
    commitment: float = 0.25


def convolution(layer: nn.Module, *, active: bool = True) -> nn.Sequential:
    """The layer under the published name ``conv``, with a ReLU behind it unless it is not ``active``."""
    return nn.Sequential(OrderedDict(conv=layer, act=nn.ReLU() if active else nn.Identity()))


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = convolution(nn.Conv2d(width, inner, 3, 1, 1))
        self.conv2 = convolution(nn.Conv2d(inner, width, 3, 1, 1), active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(self.conv1(x)))


class Blocks(nn.Module):
    """Layers one after the other, under the published name ``blocks``."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Quantiser(nn.Module):
    """Nearest code, straight-through gradient, codes as moving averages (van den Oord et al., 2017, A.1)."""

    smoothing = 1e-5

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.decay, self.commitment = shape.decay, shape.commitment
        self.embedding = nn.Embedding(shape.codes, shape.code_dimension)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("ema_cluster_size", torch.zeros(shape.codes))
        self.register_buffer("ema_w", self.embedding.weight.detach().clone())

    def nearest(self, latent: Tensor) -> Tensor:
        """(N, C, h, w) -> index of the nearest code at each place (N, h, w)."""
        # ||x - e||^2 less ||x||^2, which is the same for every code, as a 1 x 1 convolution.
        codes = self.embedding.weight
        return F.conv2d(latent, -2 * codes[:, :, None, None], codes.square().sum(1)).argmin(1)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> its quantised form, and the commitment loss. In training the codes move, too."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            index = self.nearest(latent)
            quantised = self.embedding(index).permute(0, 3, 1, 2)
            if self.training:
                self._learn(latent.detach(), index)
            loss = self.commitment * F.mse_loss(latent, quantised)
            return latent + (quantised - latent).detach(), loss

    @torch.no_grad()
    def _learn(self, latent: Tensor, index: Tensor) -> None:
        chosen = F.one_hot(index.flatten(), len(self.ema_cluster_size)).float()
        counts = chosen.sum(0)
        sums = chosen.t() @ latent.permute(0, 2, 3, 1).flatten(0, 2)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.ema_cluster_size.lerp_(counts, 1 - self.decay)
        self.ema_w.lerp_(sums, 1 - self.decay)
        total = self.ema_cluster_size.sum()
        smooth = (self.ema_cluster_size + self.smoothing) / (total + len(counts) * self.smoothing) * total
        self.embedding.weight.copy_(self.ema_w / smooth[:, None])


class MLVQGAN(nn.Module):
    """Planes (N, 1, H, W) in [-1, 1]; H and W multiples of 2 to the power of the number of levels."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        widths, dimension = shape.channels, shape.code_dimension
        down: list[nn.Module] = []
        for before, width in pairwise((1, *widths)):
            down.append(convolution(nn.Conv2d(before, width, 4, 2, 1)))
            down += [Residual(width, shape.residual) for _ in range(shape.blocks)]
        down.append(convolution(nn.Conv2d(widths[-1], dimension, 3, 1, 1), active=False))
        up: list[nn.Module] = [convolution(nn.Conv2d(dimension, widths[-1], 3, 1, 1), active=False)]
        for width, after in pairwise((*reversed(widths), 1)):
            up += [Residual(width, shape.residual) for _ in range(shape.blocks)]
            up.append(convolution(nn.ConvTranspose2d(width, after, 4, 2, 1), active=after != 1))
        self.encoder, self.decoder = Blocks(*down), Blocks(*up)
        self.quantizer = nn.ModuleDict({"quantizer": Quantiser(shape)})

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) -> latent (N, C, H/8, W/8), not quantised."""
        return self.encoder(image)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent -> the nearest codes, and the commitment loss. ``encode`` and this give what the authors'
        diffusion works on (``encode_stage_2_inputs``), both as the condition and as the target.
        """
        return self.quantizer["quantizer"](latent)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> image; the latent is quantised first (``decode_stage_2_outputs``).

        What the authors sample is decoded without that: ``decoder(latent)``.
        """
        return self.decoder(self.quantise(latent)[0])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image again, and the commitment loss."""
        quantised, loss = self.quantise(self.encode(image))
        return self.decoder(quantised), loss
