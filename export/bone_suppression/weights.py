"""A model folder's networks, read back from its graphs: so that it can learn on where no checkpoint is left.

The exporter keeps the names of most weights (``halve_weights`` adds ``.half``). It folds the weights of group
normalisations into anonymous constants of shape (C, 1, 1); those are told by the order in which the graph
and the network use them. That all of it is right is shown by parity: the network and the graph must give the
same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.bone_suppression.recipes import SYSTEMS, System, side_by_side
from export.bone_suppression.unet import UNet
from export.bone_suppression.vqgan import MLVQGAN
from export.shipping import save_graph
from pacs_node.errors import ModelError
from pacs_node.infer.cards import Card

#: What the codes are called in the graphs, and where they are in the autoencoder.
CODES = "codes.embedding.weight"
QUANTISER = "quantizer."
#: Largest difference of network and graph, relative to the largest value. Both compute in float32 with the
#: same weights, half-stored or not.
TOLERANCE = 1e-3


class OtherNetworkError(Exception):
    """The graph holds another network."""


class Graph:
    """One graph and its weights."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(str(path))
        self._unshare()
        self.weights = {weight.name: weight for weight in self.model.graph.initializer}

    def _unshare(self) -> None:
        """Weights that were alike when they were exported are stored once, the others named by an Identity:
        here each gets its own, as it may become another.
        """
        graph = self.model.graph
        weights = {weight.name: weight for weight in graph.initializer}
        for node in [n for n in graph.node if n.op_type == "Identity"]:
            for suffix in ("", ".half"):
                if (shared := weights.get(node.input[0] + suffix)) is None:
                    continue
                copy = graph.initializer.add()
                copy.CopyFrom(shared)
                copy.name = node.output[0] + suffix
                weights[copy.name] = copy
                if suffix:
                    cast = onnx.helper.make_node("Cast", [copy.name], node.output, to=onnx.TensorProto.FLOAT)
                    node.CopyFrom(cast)
                else:
                    graph.node.remove(node)
                break

    @property
    def quantises(self) -> bool:
        """Whether it takes the nearest code."""
        return any(node.op_type == "ArgMin" for node in self.model.graph.node)

    def stored(self, name: str) -> str | None:
        """The initialiser of that name, whole or half; None if there is none."""
        return next((n for n in (name, f"{name}.half") if n in self.weights), None)

    def read(self, name: str) -> Tensor:
        """An initialiser, float32."""
        return torch.from_numpy(numpy_helper.to_array(self.weights[name]).astype(np.float32))

    def norms(self) -> list[tuple[str, str]]:
        """The two constants of each group normalisation, in the order of use."""
        users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
        found = []
        for node in self.model.graph.node:
            if node.op_type != "InstanceNormalization":
                continue
            constants = []
            for wanted in ("Reshape", "Mul", "Add"):
                (node,) = (n for n in users[node.output[0]] if n.op_type == wanted)
                constants += [n for n in map(self.stored, node.input) if n and wanted != "Reshape"]
            if len(constants) != 2:
                raise OtherNetworkError("a normalisation without its weights")
            found.append((constants[0], constants[1]))
        return found

    def places(self, network: nn.Module, prefix: str, norms: Iterable[str] = ()) -> dict[str, str]:
        """Weight of ``network`` -> initialiser. ``norms``: its group normalisations in the order of use."""
        places: dict[str, str] = {}
        for name, pair in zip(norms, pairs := self.norms(), strict=False):
            places |= {f"{name}.weight": pair[0], f"{name}.bias": pair[1]}
        wanted = dict(network.named_parameters())
        if len(places) != 2 * len(pairs):
            raise OtherNetworkError("another number of normalisations")
        for name, weight in wanted.items():
            place = places.get(name) or self.stored(prefix + name)
            if place is None:
                raise OtherNetworkError(f"no {prefix}{name}")
            shape = tuple(self.weights[place].dims)
            if shape != (*weight.shape, *(1, 1) * (name in places)):
                raise OtherNetworkError(f"{name} of {shape}")
            places[name] = place
        return places

    def write(self, places: dict[str, str], weights: dict[str, Tensor], path: Path) -> None:
        """The same graph with other ``weights``, each stored as it was."""
        for name, place in places.items():
            kept = self.weights[place]
            values = weights[name].detach().cpu().numpy().reshape(tuple(kept.dims))
            kept.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(kept).dtype), place))
        save_graph(self.model, path)


@dataclass
class Networks:
    """A model's networks with its weights, and where in its graphs those stand.

    ``quantised``: as in the recipe of a denoiser.
    """

    system: System
    autoencoder: nn.Module
    denoiser: nn.Module
    graphs: dict[str, Graph]
    places: dict[str, dict[str, str]]
    quantised: bool


def networks(card: Card) -> Networks:
    """The networks in the folder of ``card``, which computes as its graphs do.

    Raises ModelError if they are of no system of the recipes, or do not compute the same.
    """
    graphs = {role: Graph(card.path(role)) for role in ("encoder", "denoiser", "decoder")}
    why = []
    for system in SYSTEMS.values():
        try:
            found = _as(system, graphs)
        except OtherNetworkError as error:
            why.append(f"{system.name}: {error}")
            continue
        worst = {role: _difference(card, found, role) for role in graphs}
        if max(worst.values()) < TOLERANCE:
            return found
        why.append(f"{system.name}: differs by {max(worst.values()):.1g}")
    raise ModelError(
        f"{card.folder}: its networks are of no system that this project trains ({'; '.join(why)}), so it "
        "cannot learn on. Adapt a model that was exported here, or train one: python -m export train "
        "bone-suppression"
    )


def _as(system: System, graphs: dict[str, Graph]) -> Networks:
    """The weights in ``graphs`` as those of ``system``. Raises OtherNetworkError."""
    with torch.device("meta"):  # shapes first: the full-size networks take gigabytes
        autoencoder = MLVQGAN(system.autoencoder_shape)
        denoiser = UNet(system.denoiser_shape)
    channels, side = system.autoencoder_shape.code_dimension, 64
    latent = torch.zeros(1, channels, side, side, device="meta")
    places = {
        role: graphs[role].places(getattr(autoencoder, role), f"{role}.") for role in ("encoder", "decoder")
    }
    places["denoiser"] = graphs["denoiser"].places(denoiser, "network.", _order(system, denoiser, latent))
    weights = {
        role: {name: graphs[role].read(place) for name, place in places[role].items()} for role in places
    }
    codes = [graph.read(CODES) for graph in graphs.values() if CODES in graph.weights]
    wanted = {f"{part}.{n}": w for part in ("encoder", "decoder") for n, w in weights[part].items()}
    if codes:
        (key,) = (k for k in autoencoder.state_dict() if k.endswith(".embedding.weight"))
        if codes[0].shape != autoencoder.state_dict()[key].shape:
            raise OtherNetworkError(f"{len(codes[0])} codes")
        wanted[key] = codes[0]
    autoencoder = MLVQGAN(system.autoencoder_shape)
    missing = autoencoder.load_state_dict(wanted, strict=False).missing_keys
    if strange := [name for name in missing if not name.startswith(QUANTISER)]:
        raise OtherNetworkError(f"no {strange[0]}")
    denoiser = UNet(system.denoiser_shape)
    denoiser.load_state_dict(
        {n: w.reshape(denoiser.state_dict()[n].shape) for n, w in weights["denoiser"].items()}
    )
    return Networks(
        system,
        autoencoder.eval().requires_grad_(False),
        denoiser.eval(),
        graphs,
        places,
        graphs["encoder"].quantises,
    )


def _order(system: System, denoiser: nn.Module, latent: Tensor) -> list[str]:
    """The group normalisations of ``denoiser``, on the meta device, in the order of use."""
    used: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: used.append(name))
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.GroupNorm)
    ]
    side_by_side(denoiser, latent, latent, torch.zeros(1, device="meta"))
    for hook in hooks:
        hook.remove()
    return used


@torch.no_grad()
def _difference(card: Card, found: Networks, role: str) -> float:
    """Of a graph and its network on drawn numbers, relative to the largest."""
    size, factor = card.input.size, found.system.factor
    channels, side = found.system.autoencoder_shape.code_dimension, size // factor
    drawn = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, size, size, generator=drawn) * 2 - 1
    latent, other = torch.randn(2, 1, channels, side, side, generator=drawn)
    autoencoder = found.autoencoder
    if role == "encoder":
        given, wanted = {"image": image}, autoencoder.encode(image)
        wanted = autoencoder.quantise(wanted)[0] if found.quantised else wanted
    elif role == "decoder":
        given = {"latent": latent}
        wanted = autoencoder.decoder(latent)
    else:
        time = torch.tensor([700.0])
        given = {"sample": latent, "condition": other, "timestep": time}
        wanted = side_by_side(found.denoiser, latent, other, time)
    session = onnxruntime.InferenceSession(str(card.path(role)), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    # A latent between two codes may take the other one by rounding: of some thousand, a few.
    error = np.abs(got - wanted.numpy())
    return float(np.quantile(error, 0.99) / np.abs(got).max())
