"""The autoencoder: image -> latent of 1/8 the side -> one of 256 codes a place -> image.

Small sister of BS-LDM's ML-VQGAN (Sun et al., arXiv 2412.15670; VQGAN: Esser et al., CVPR 2021): the same
path and
downsampling, fewer channels. The encoder gives the latent before quantisation, on which the diffusion works;
the
decoder quantises it first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from export.devices import gathered, summed


@dataclass(frozen=True)
class Shape:
    """Channels of the levels at 1/2, 1/4 and 1/8 of the side, residual blocks a level, codes and their
    dimension.

    The first ``warm_up`` batches of training pass unquantised: codes chosen before the latents have spread
    collapse.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    codes: int = 256
    code_dimension: int = 4
    warm_up: int = 250


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, 1, 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Quantiser(nn.Module):
    """Nearest code, straight-through gradient, codes as moving averages (van den Oord et al., 2017, appendix
    A.1).
    """

    decay, commitment, least_used = 0.99, 0.25, 0.3

    def __init__(self, codes: int, dimension: int, warm_up: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, dimension))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("to_come", torch.tensor(warm_up))
        self.register_buffer("chosen", torch.tensor(0))

    def nearest(self, rows: Tensor) -> Tensor:
        """Index of the code nearest to each row of (n, dimension)."""
        return (self.codes.square().sum(1) - 2 * rows @ self.codes.t()).argmin(1)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> its quantised form, and the loss that holds the encoder to the codes."""
        latent = latent.float()
        if self.training and self.to_come > 0:
            self.to_come -= 1
            return latent, 1e-3 * latent.square().mean()
        rows = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        if self.training:
            with torch.autocast(latent.device.type, enabled=False):
                self._learn(rows.detach())
        quantised = self.codes[self.nearest(rows)]
        loss = self.commitment * F.mse_loss(rows, quantised)
        quantised = rows + (quantised - rows).detach()
        return quantised.reshape(latent.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2), loss

    @torch.no_grad()
    def _learn(self, rows: Tensor) -> None:
        if not self.chosen:
            self._replace(torch.ones(len(self.codes), dtype=torch.bool), rows)
            self.chosen.fill_(1)
        taken = F.one_hot(self.nearest(rows), len(self.codes)).float()
        self.counts.lerp_(summed(taken.sum(0)), 1 - self.decay)
        self.sums.lerp_(summed(taken.t() @ rows), 1 - self.decay)
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        self._replace(self.counts < self.least_used, rows)

    def _replace(self, which: Tensor, rows: Tensor) -> None:
        """Codes that nothing uses start again at latents of this batch."""
        if which.any():
            rows = gathered(rows)
            picks = rows[torch.randint(len(rows), (int(which.sum()),))]
            self.codes[which], self.sums[which], self.counts[which] = picks, picks.clone(), 1.0


class Autoencoder(nn.Module):
    """Planes (N, 1, H, W) in [-1, 1], H and W multiples of 8."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        widths, dimension = shape.channels, shape.code_dimension
        down: list[nn.Module] = []
        for before, width in pairwise((1, *widths)):
            down += [nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()]
            down += [Residual(width) for _ in range(shape.blocks)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], dimension, 3, 1, 1))
        self.quantiser = Quantiser(shape.codes, dimension, shape.warm_up)
        up: list[nn.Module] = [nn.Conv2d(dimension, widths[-1], 3, 1, 1)]
        last = widths[0] // 2
        for width, after in pairwise((*reversed(widths), last)):
            up += [Residual(width) for _ in range(shape.blocks)]
            up += [nn.ReLU(), nn.ConvTranspose2d(width, after, 4, 2, 1)]
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.Conv2d(last, 1, 3, 1, 1))

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) -> latent (N, C, H/8, W/8), not quantised."""
        return self.encoder(image)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latent -> its codes, and the loss that holds the encoder to them."""
        return self.quantiser(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> image; the latent is quantised first."""
        return self.decoder(self.quantise(latent)[0])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image again, and the quantiser's loss."""
        quantised, loss = self.quantiser(self.encoder(image))
        return self.decoder(quantised), loss


class Discriminator(nn.Module):
    """Tells patches of real images from decoded ones (N, 1, H, W) -> (N, 1, H/8, W/8); least squares."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)
