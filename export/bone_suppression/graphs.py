"""The three graphs of a bone suppression model, as pacs_node.infer.contract wants them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.bone_suppression.unet import UNet, time_embedding, time_rates
from export.bone_suppression.vqgan import MLVQGAN


class Encoder(nn.Module):
    """image (N, 1, S, S) -> latent (N, C, S/8, S/8), ``quantised`` as the authors' diffusion wants it."""

    def __init__(self, autoencoder: MLVQGAN, quantised: bool = True) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.codes = autoencoder.quantizer["quantizer"] if quantised else None

    def forward(self, image: Tensor) -> Tensor:
        latent = self.encoder(image)
        if self.codes is None:
            return latent
        return self.codes.embedding(self.codes.nearest(latent)).permute(0, 3, 1, 2)


class SteadyTime(nn.Module):
    """``time_embedding`` of time steps from 0 to ``steps`` - 1, true in bf16 and f16, too.

    There the angle t * rate of a late step is off by whole radians (measured: an error of 13 % of the
    prediction at t = 999 in bf16, 1 % at 0). So the nearest whole step is found by comparison, which rounding
    does not disturb, its row taken from a table, and turned by the small angle of the remainder.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        whole = torch.arange(steps, dtype=torch.float32)
        self.register_buffer("whole", whole)
        self.register_buffer("table", time_embedding(whole, width))
        self.register_buffer("rates", time_rates(width))

    def forward(self, timestep: Tensor) -> Tensor:
        # OpenVINO gives an input whole to arithmetic alone; all else gets it rounded. Multiples of 8 and what
        # is left of them fit into bf16's 8 bits.
        coarse = torch.floor(timestep / 8) * 8
        fine = timestep - coarse
        distance = (coarse[:, None] - self.whole) + fine[:, None]
        chosen = ((distance > -0.5) & (distance <= 0.5)).float()
        cosine, sine = (chosen @ self.table).chunk(2, dim=1)
        angle = (chosen * distance).sum(1, keepdim=True) * self.rates
        return torch.cat(
            (cosine * angle.cos() - sine * angle.sin(), sine * angle.cos() + cosine * angle.sin()), dim=1
        )


class Denoiser(nn.Module):
    """sample and condition (N, C, h, w), timestep (N,) -> prediction (N, C, h, w).

    The published network also predicts something for the condition's channels, which nobody uses.
    """

    def __init__(self, network: UNet, steps: int) -> None:
        super().__init__()
        self.network, self.time = network, SteadyTime(network.shape.width, steps)

    def forward(self, sample: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        x = torch.cat((sample, condition), dim=1)
        return self.network.denoise(x, self.time(timestep))[:, : sample.shape[1]]


class Decoder(nn.Module):
    """latent (N, C, h, w) -> image (N, 1, 8 h, 8 w). The latent is decoded as it is, as the authors do."""

    def __init__(self, autoencoder: MLVQGAN) -> None:
        super().__init__()
        self.decoder = autoencoder.decoder

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)
