"""Whether a checkpoint's weights are those of the network that they are for, and the network with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from export.bone_suppression.pickled import Checkpoint, CheckpointError

Network = TypeVar("Network", bound=nn.Module)
#: What a state dict looks like to be: all of these beginnings are among its names.
SIGNS = {
    "an ML-VQGAN (MONAI's VQVAE)": ("encoder.blocks.", "decoder.blocks.", "quantizer."),
    "guided diffusion's UNetModel": ("time_embed.", "input_blocks.", "output_blocks."),
    "a Stable Diffusion checkpoint": ("model.diffusion_model.", "first_stage_model."),
    "a U-Net of diffusers": ("down_blocks.", "mid_block.", "up_blocks.", "time_embedding."),
    "MONAI's DiffusionModelUNet": ("down_blocks.", "middle_block.", "up_blocks.", "time_embed."),
    "a KL autoencoder of latent diffusion": ("encoder.down.", "decoder.up.", "quant_conv."),
    "a KL autoencoder of MONAI": ("encoder.blocks.", "decoder.blocks.", "quant_conv_mu."),
    "a KL autoencoder of diffusers": ("encoder.down_blocks.", "decoder.up_blocks."),
    "a U-Net of SR3 or DiffusionXray": ("downs.", "ups."),
    "a patch discriminator": ("initial_conv.", "final_conv."),
    "a ResNet": ("conv1.", "layer1.", "layer4."),
    "a VGG": ("features.", "classifier."),
}
#: How many names an error tells.
TOLD = 3


def restore(make: Callable[[], Network], checkpoint: Checkpoint, what: str) -> Network:
    """``make()`` with the checkpoint's weights in float32, ready to infer.

    Raises CheckpointError with a sentence for each kind of thing that does not fit; ``what`` names the
    network.
    """
    with torch.device("meta"):
        network = make()
    wanted, given = network.state_dict(), checkpoint.weights
    common = wanted.keys() & given.keys()
    if 2 * len(common) < len(wanted):
        raise CheckpointError(
            f"{checkpoint.path}: not {what}, it looks like {looks_like(checkpoint)}. Give the file of {what}."
        )
    problems = []
    if missing := [name for name in wanted if name not in given]:
        problems.append(
            f"{some(missing)} missing that {what} has. Save all of the module's state, buffers too"
        )
    if strange := [name for name in given if name not in wanted]:
        problems.append(
            f"{some(strange)} there that {what} has not. Its configuration differs from the published one; "
            "choose another --published, or train with these shapes"
        )
    if misshapen := [name for name in wanted if name in common and wanted[name].shape != given[name].shape]:
        first = misshapen[0]
        problems.append(
            f"{some(misshapen)} of another shape ({first} is {tuple(given[first].shape)}, not "
            f"{tuple(wanted[first].shape)}). Choose the --published whose shapes these are"
        )
    if bad := [name for name in wanted if name in common and not finite(given[name])]:
        problems.append(
            f"{some(bad)} not finite (NaN or infinity). Training went wrong there; take an earlier checkpoint"
        )
    if problems:
        raise CheckpointError("\n".join(f"{checkpoint.path}: {problem}." for problem in problems))
    network.load_state_dict({name: given[name].float() for name in wanted}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def looks_like(checkpoint: Checkpoint) -> str:
    """In words, what network the checkpoint is of."""
    names = checkpoint.weights
    for words, signs in SIGNS.items():
        if all(any(name.startswith(sign) for name in names) for sign in signs):
            return words
    if whole := checkpoint.classes.get(""):
        return f"a {whole}"
    return f"something unknown with {', '.join(list(names)[:TOLD])} …"


def some(names: list[str]) -> str:
    """The first few names and how many more; with the verb."""
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return f"{', '.join(names[:TOLD])}{more} {'is' if len(names) == 1 else 'are'}"


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite numbers."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64)))
