"""What each task's ONNX graphs must take and give: names and ranks of their tensors, all float32.

S is the card's ``input.size``, C x h x w the latent. N, the number of images, is free in every graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pacs_node.tasks import Task


@dataclass(frozen=True)
class Graph:
    """The tensors of one graph: name and dimensions, in order."""

    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]


_IMAGE = ("N", "1", "S", "S")
_LATENT = ("N", "C", "h", "w")
_DEEP = ("N", "D", "h", "w")

CONTRACT: dict[Task, dict[str, Graph]] = {
    Task.BONE_SUPPRESSION: {
        "encoder": Graph({"image": _IMAGE}, {"latent": _LATENT}),
        "denoiser": Graph(
            {"sample": _LATENT, "condition": _LATENT, "timestep": ("N",)}, {"prediction": _LATENT}
        ),
        "decoder": Graph({"latent": _LATENT}, {"image": _IMAGE}),
        # Only as a variant: the denoiser's first level, given what a pass of the whole denoiser found below
        # it. That denoiser gives ``deep``, too (see ``graph``).
        "shallow": Graph(
            {"sample": _LATENT, "condition": _LATENT, "timestep": ("N",), "deep": _DEEP},
            {"prediction": _LATENT},
        ),
        # Only where the card has [local]: the lungs of a radiograph, 0 to 1.
        "lungs": Graph({"image": _IMAGE}, {"mask": _IMAGE}),
    },
    Task.RESTORATION: {
        "denoiser": Graph(
            {"sample": _IMAGE, "condition": _IMAGE, "timestep": ("N",)}, {"prediction": _IMAGE}
        ),
    },
    Task.ANOMALY: {
        # conditions: age in years / 100 or 0; age known 0/1; sex +1 M, -1 F, 0 unknown;
        # view +1 PA, -1 AP, 0 unknown; 1
        "model": Graph(
            {"image": _IMAGE, "conditions": ("N", "5")}, {"score": ("N",), "heatmap": ("N", "h", "w")}
        ),
    },
}


def graph(task: Task, role: str, roles: Collection[str]) -> Graph:
    """What the graph of ``role`` must take and give, in a table of the card that has ``roles``."""
    found = CONTRACT[task][role]
    if role == "denoiser" and "shallow" in roles:
        return Graph(found.inputs, found.outputs | {"deep": _DEEP})
    return found
