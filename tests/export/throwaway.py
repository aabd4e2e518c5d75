"""Checkpoints in the authors' form, made without their code: throw-away classes under their modules' names.

``torch.save`` of a whole module writes the names of its classes and its state. So modules of ours, given
classes of those names, pickle to what the authors' would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from export.bone_suppression import unet, vqgan

THEIRS = {
    unet.UNet: "modules.unet.UNetModel",
    unet.Residual: "modules.unet.ResBlock",
    unet.Attention: "modules.unet.AttentionBlock",
    unet.Stage: "modules.unet.TimestepEmbedSequential",
    vqgan.MLVQGAN: "generative.networks.nets.vqvae.VQVAE",
    vqgan.Blocks: "generative.networks.nets.vqvae.Encoder",
    vqgan.Residual: "generative.networks.nets.vqvae.VQVAEResidualUnit",
    vqgan.Quantiser: "generative.networks.layers.vector_quantizer.EMAQuantizer",
}


def save_as_published(network: nn.Module, path: Path) -> None:
    """The whole module, pickled as the authors' would be. The module is of no use afterwards."""
    with _named() as classes:
        for module in network.modules():
            vars(module).pop("shape", None)
            if isinstance(module, unet.Attention):
                order = "modules.unet.QKVAttention" + ("" if module.new_order else "Legacy")
                module.attention = classes[order]()
            module.__class__ = classes.get(THEIRS.get(type(module), ""), type(module))
        torch.save(network, path)


@contextmanager
def _named() -> Iterator[dict[str, type[nn.Module]]]:
    """The classes by their full names, in modules that are gone afterwards."""
    classes, made = {}, []
    for full in (*THEIRS.values(), "modules.unet.QKVAttention", "modules.unet.QKVAttentionLegacy"):
        place, name = full.rsplit(".", 1)
        parts = place.split(".")
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if module not in sys.modules:
                sys.modules[module] = ModuleType(module)
                made.append(module)
        classes[full] = type(name, (nn.Module,), {"__module__": place})
        setattr(sys.modules[place], name, classes[full])
    try:
        yield classes
    finally:
        for module in made:
            del sys.modules[module]
