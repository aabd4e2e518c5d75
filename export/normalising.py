"""Group normalisation from what each channel adds up to, so that planes keep the order of the convolutions.

The exporter writes it as InstanceNormalization of planes whose channels are gathered into groups. That wants
each channel in one piece, while convolutions on a processor have the channels of a pixel side by side, so
OpenVINO transposes every plane in front of it and again behind it. Mean and mean square of each channel need
no such order, and what was joined from several planes has theirs. A grouped convolution of these few numbers
gives every channel the mean of its group's. All that scales and shifts whole channels behind the norm, its
own weights and the time's, is gathered into one factor and one offset a channel, which melt into the
activation. It is done in int8 graphs, which only run on processors and whose convolutions leave the norms a
larger part of the time.

The variance is the mean square less the square of the mean, so its relative error is float32's (6e-8) times
mean square over variance: 6e-4 where a group's mean is a hundred times its deviation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.rewriting import PIXELS, Shape, formula, put_nodes

_STATISTICS = """
statistics (float[N, C, H, W] plane) => (float[N, C, 1, 1] mean, float[N, C, 1, 1] length) {
  mean = ReduceMean <axes = [2, 3]> (plane)
  length = ReduceL2 <axes = [2, 3]> (plane)
}
"""
#: ``average``, ``average_pixel`` (C, C / groups, 1, 1) hold groups / C and groups / (C H W); ``epsilon`` and
#: ``epsilons`` (C) the norm's; ``half`` is -1/2, ``pixel`` the axes (-2, -1).
_NORM = """
norm (float[N, C, 1, 1] mean_of_channel, float[N, C, 1, 1] length, float[C, K, 1, 1] average,
      float[C, K, 1, 1] average_pixel, float[C] epsilons, float epsilon, float half, int64[2] pixel)
     => (float[N, C] factor, float[N, C] offset) {{
  mean = Conv <group = {groups}> (mean_of_channel, average)
  sum_of_squares = Mul (length, length)
  raised_mean_square = Conv <group = {groups}> (sum_of_squares, average_pixel, epsilons)
  squared_mean = Mul (mean, mean)
  difference = Sub (raised_mean_square, squared_mean)
  raised_variance = Max (difference, epsilon)
  reciprocal = Pow (raised_variance, half)
  moved = Mul (mean, reciprocal)
  shift = Neg (moved)
  factor = Squeeze (reciprocal, pixel)
  offset = Squeeze (shift, pixel)
}}
"""
#: That factor and offset come as rows keeps OpenVINO from making them anew for every pixel.
_SCALING = """
scaling (float[N, C, H, W] plane, float[N, C] factor, float[N, C] offset, int64[2] pixel)
        => (float[N, C, H, W] normalised) {
  factor_of_channel = Unsqueeze (factor, pixel)
  offset_of_channel = Unsqueeze (offset, pixel)
  scaled = Mul (plane, factor_of_channel)
  normalised = Add (scaled, offset_of_channel)
}
"""


@dataclass(frozen=True)
class _GroupNorm:
    """``node``: its InstanceNormalization; ``plane``, of ``shape``, goes in. ``scalings``: the Mul and Add of
    whole channels that follow, each with what it scales or shifts by. ``normalised`` comes out.
    """

    node: NodeProto
    plane: str
    shape: Shape
    groups: int
    scalings: tuple[tuple[str, str], ...]
    normalised: str

    def weights(self) -> dict[str, TensorProto]:
        """By their names in the formulas; equal ones have equal names in the graph."""
        channels, height, width = self.shape
        each = channels // self.groups
        (epsilon,) = (found.f for found in self.node.attribute if found.name == "epsilon")
        whole = np.full((channels, each, 1, 1), 1 / each, np.float32)
        values = {
            "average": (whole, f"{channels}.{self.groups}"),
            "average_pixel": (
                whole / np.float32(height * width),
                f"{channels}.{self.groups}.{height}.{width}",
            ),
            "epsilons": (np.full(channels, epsilon, np.float32), f"{channels}.{epsilon:g}"),
            "epsilon": (np.array(epsilon, np.float32), f"{epsilon:g}"),
            "half": (np.array(-0.5, np.float32), "half"),
            "pixel": (np.array([-2, -1], np.int64), "pixel"),
        }
        return {
            role: numpy_helper.from_array(value, f"norms.{name}") for role, (value, name) in values.items()
        }

    def nodes(self, weights: Mapping[str, str]) -> Iterator[NodeProto]:
        """All but the plane's statistics."""
        place = self.node.name
        names = {**weights, "plane": self.plane, "normalised": self.normalised}
        names |= {"mean_of_channel": f"{self.plane}/mean", "length": f"{self.plane}/length"}
        yield from formula(_NORM.format(groups=self.groups), place, names)
        ends = {"factor": f"{place}/factor", "offset": f"{place}/offset"}
        for number, (kind, by) in enumerate(self.scalings):
            row = f"{place}/row.{number}"
            yield helper.make_node("Squeeze", [by, weights["pixel"]], [row], row)
            for end in ("factor", "offset") if kind == "Mul" else ("offset",):
                after = f"{place}/{end}.{number}"
                yield helper.make_node(kind, [ends[end], row], [after], after)
                ends[end] = after
        yield from formula(_SCALING, place, names | ends)


def normalise_by_channel(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> int:
    """Rewrites, in place, the group normalisations as the exporter writes them; how many there were.

    Those of planes that are small or whose shape is not in ``shapes`` stay, and so do other normalisations.
    """
    graph = model.graph
    found = {norm.normalised: norm for norm in _group_norms(graph, shapes)}
    joined = {node.output[0]: list(node.input) for node in graph.node if _joins_channels(node)}
    weights: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    known: set[str] = set()

    def statistics(plane: str) -> None:
        """Those of ``plane``, once."""
        if plane in known:
            return
        known.add(plane)
        parts = joined.get(plane)
        if parts is None:
            nodes.extend(formula(_STATISTICS, plane, {"plane": plane}))
            return
        for part in parts:
            statistics(part)
        for kind in ("mean", "length"):
            whole, those = f"{plane}/{kind}", [f"{part}/{kind}" for part in parts]
            nodes.append(helper.make_node("Concat", those, [whole], whole, axis=1))

    for node in graph.node:
        norm = found.get(node.output[0])
        if norm is None:
            nodes.append(node)
            continue
        own = norm.weights()
        weights |= {weight.name: weight for weight in own.values()}
        statistics(norm.plane)
        nodes += norm.nodes({role: weight.name for role, weight in own.items()})
    graph.initializer.extend(weights.values())
    put_nodes(graph, nodes)
    return len(found)


def _joins_channels(node: NodeProto) -> bool:
    return node.op_type == "Concat" and node.attribute[0].i == 1


def _group_norms(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> Iterator[_GroupNorm]:
    """Reshape to [0, groups, -1], InstanceNormalization with factors of 1 and offsets of 0, Reshape back."""
    made = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    def constant(name: str) -> NDArray[np.generic]:
        """What a Constant holds; NaN, which equals nothing, for another node."""
        node = made.get(name)
        if node is None or node.op_type != "Constant":
            return np.array(np.nan)
        return numpy_helper.to_array(node.attribute[0].t)

    def scalings(name: str, channels: int) -> Iterator[tuple[str, str, str]]:
        """Mul or Add, by what, and what comes out, as long as nothing else uses what goes in."""
        while len(users[name]) == 1 and name not in outputs:
            (node,) = users[name]
            by = next((other for other in node.input if other != name), "")
            if node.op_type not in ("Mul", "Add") or shapes.get(by) != (channels, 1, 1):
                return
            name = node.output[0]
            yield node.op_type, by, name

    for node in graph.node:
        if node.op_type != "InstanceNormalization":
            continue
        gather, back = made.get(node.input[0]), users[node.output[0]]
        if gather is None or [gather.op_type, *(user.op_type for user in back)] != ["Reshape"] * 2:
            continue
        grouped, factors, offsets = (constant(name) for name in (gather.input[1], *node.input[1:]))
        if grouped.size != 3 or grouped[0] != 0 or (factors != 1).any() or (offsets != 0).any():
            continue
        plane, end = gather.input[0], back[0].output[0]
        shape = shapes.get(plane)
        if shape is None or shape[1] * shape[2] < PIXELS:
            continue
        found = tuple(scalings(end, shape[0]))
        end = found[-1][2] if found else end
        steps = tuple((kind, by) for kind, by, _ in found)
        yield _GroupNorm(node, plane, shape, int(grouped[1]), steps, end)
