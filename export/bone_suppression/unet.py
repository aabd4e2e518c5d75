"""The denoiser of BS-LDM and GL-LCM: the U-Net of guided diffusion, under its published parameter names.

Dhariwal and Nichol, arXiv 2105.05233, as BS-LDM and GL-LCM configure it: residual blocks also go down and up,
the time scales and shifts each block, attention at 1/8 of the latent's side and below. A state dict of theirs
loads here with ``strict=True``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Shape:
    """The full-size network by default.

    ``width`` times ``multipliers`` are the channels of the levels, each with ``blocks`` residual blocks on
    the way down and one more on the way up; ``attention``: the downsampling factors with attention of
    ``heads`` heads (the middle always has it). ``new_attention_order``: whether queries, keys and values are
    told apart before the heads (GL-LCM) or after (BS-LDM). ``groups``: of the group normalisations.
    ``residual``: what comes out is added to the last of the inputs, the condition: an untrained network then
    leaves the radiograph as it is, and learns the bones alone (not so in the published networks).
    """

    inputs: int = 8
    outputs: int = 8
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks: int = 8
    attention: tuple[int, ...] = (8, 16, 32, 64)
    heads: int = 8
    new_attention_order: bool = False
    groups: int = 32
    residual: bool = False


def time_rates(width: int) -> Tensor:
    """Radians a time step, falling from 1 to 1/10,000 (width / 2,)."""
    return torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))


def time_embedding(timestep: Tensor, width: int) -> Tensor:
    """(N,) -> (N, width): cosines, then sines."""
    angles = timestep[:, None].float() * time_rates(width).to(timestep.device)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with zeros for weights: an untrained block passes its input on."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


class Residual(nn.Module):
    """Residual block, scaled and shifted by the time; ``resize`` halves or doubles the side within it."""

    def __init__(
        self, before: int, after: int, time: int, groups: int, resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.resize = resize or nn.Identity()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, after, 3, 1, 1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * after))
        # The third layer is the place of a dropout that the authors set to nothing.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, after), nn.SiLU(), nn.Identity(), zeroed(nn.Conv2d(after, after, 3, 1, 1))
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self.resize(activation(norm(x))))
        norm, *rest = self.out_layers
        # Not by chunk, of whose result the exported graph does not know the shape.
        scale, shift = self.emb_layers(time)[:, :, None, None].split(norm.num_channels, dim=1)
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resize(x)) + h


class Attention(nn.Module):
    """Every place attends to every other."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.heads, self.new_order = shape.heads, shape.new_attention_order
        self.norm = nn.GroupNorm(shape.groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.qkv(self.norm(x).flatten(2))
        if self.new_order:
            parts = mixed.unflatten(1, (3, self.heads, -1)).transpose(1, 2)
        else:
            parts = mixed.unflatten(1, (self.heads, 3, -1))
        query, key, value = parts.transpose(3, 4).unbind(2)  # each (N, heads, places, channels)
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(seen.transpose(2, 3).flatten(1, 2)).view_as(x)


class Stage(nn.Sequential):
    """Layers one after the other, of which the residual blocks are told the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, Residual) else layer(x)
        return x


class UNet(nn.Module):
    """(N, inputs, h, w) and the time step (N,), 0 to 999, -> (N, outputs, h, w).

    h and w are multiples of 2 to the power of the number of levels less one.
    """

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        time = 4 * shape.width
        self.time_embed = nn.Sequential(nn.Linear(shape.width, time), nn.SiLU(), nn.Linear(time, time))

        def residual(before: int, after: int, resize: nn.Module | None = None) -> Residual:
            return Residual(before, after, time, shape.groups, resize)

        def stage(before: int, after: int, factor: int, *more: nn.Module) -> Stage:
            attention = (Attention(after, shape),) if factor in shape.attention else ()
            return Stage(residual(before, after), *attention, *more)

        channels = shape.width * shape.multipliers[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(shape.inputs, channels, 3, 1, 1))])
        passed_on = [channels]
        last = len(shape.multipliers) - 1
        for level, multiplier in enumerate(shape.multipliers):
            for _ in range(shape.blocks):
                self.input_blocks.append(stage(channels, shape.width * multiplier, 2**level))
                channels = shape.width * multiplier
                passed_on.append(channels)
            if level != last:
                self.input_blocks.append(Stage(residual(channels, channels, nn.AvgPool2d(2))))
                passed_on.append(channels)

        self.middle_block = Stage(
            residual(channels, channels), Attention(channels, shape), residual(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(shape.multipliers))):
            width = shape.width * multiplier
            for number in range(shape.blocks + 1):
                ends = level > 0 and number == shape.blocks
                up = (residual(width, width, nn.Upsample(scale_factor=2)),) if ends else ()
                self.output_blocks.append(stage(channels + passed_on.pop(), width, 2**level, *up))
                channels = width
        self.out = nn.Sequential(
            nn.GroupNorm(shape.groups, channels),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, shape.outputs, 3, 1, 1)),
        )

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.denoise(x, time_embedding(timestep, self.shape.width))

    def denoise(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``forward`` given the time steps' embedding (N, width)."""
        time = self.time_embed(embedding)
        given, passed_on = x, []
        for block in self.input_blocks:
            x = block(x, time)
            passed_on.append(x)
        x = self.middle_block(x, time)
        for block in self.output_blocks:
            x = block(torch.cat((x, passed_on.pop()), dim=1), time)
        made: Tensor = self.out(x)
        return made + given[:, -self.shape.outputs :] if self.shape.residual else made
