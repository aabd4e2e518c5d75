"""Group normalisation from what each channel adds up to, so that planes keep the order of the convolutions.

The exporter writes it as InstanceNormalization of planes whose channels are gathered into groups. That wants
each channel in one piece, while convolutions on a processor have the channels of a pixel side by side, so
OpenVINO transposes every plane in front of it and again behind it. Mean and mean square of each channel need
no such order. A grouped convolution of these few numbers gives every channel the mean of its group's, and
the subtraction and the factor that are left melt into the activation behind them. It is done in int8 graphs,
which only run on processors and whose convolutions leave the norms a larger part of the time: on two cores
of a Xeon a step of the full-size U-Net takes 7 % less.

The variance is the mean square less the square of the mean, so its relative error is float32's (6e-8) times
mean square over variance: 6e-4 where a group's mean is a hundred times its deviation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

#: Planes of fewer pixels gain less than the loading of the additional nodes takes.
PIXELS = 256
Shape = tuple[int, int, int]

#: ``plane`` -> ``normalised``, both (N, C, H, W). ``average``, ``average_pixel`` (C, C / groups, 1, 1) hold
#: groups / C and groups / (C H W), ``epsilons`` (C) epsilon. The last convolution changes nothing: without it
#: OpenVINO makes the factor anew for every pixel.
_FORMULA = """
group_normalisation (float[N, C, H, W] plane, float[C, K, 1, 1] average, float[C, K, 1, 1] average_pixel,
                     float[C] epsilons) => (float[N, C, H, W] normalised) {{
  mean_of_channel = ReduceMean <axes = [2, 3]> (plane)
  mean = Conv <group = {groups}> (mean_of_channel, average)
  length = ReduceL2 <axes = [2, 3]> (plane)
  sum_of_squares = Mul (length, length)
  raised_mean_square = Conv <group = {groups}> (sum_of_squares, average_pixel, epsilons)
  squared_mean = Mul (mean, mean)
  difference = Sub (raised_mean_square, squared_mean)
  epsilon = Constant <value_float = {epsilon:.9g}> ()
  raised_variance = Max (difference, epsilon)
  exponent = Constant <value_float = -0.5> ()
  factor_of_channel = Pow (raised_variance, exponent)
  factor = Conv <group = {groups}> (factor_of_channel, average)
  centred = Sub (plane, mean)
  normalised = Mul (centred, factor)
}}
"""


@dataclass(frozen=True)
class _GroupNorm:
    """``node``: its InstanceNormalization; ``plane``, of ``shape``, goes in and ``normalised`` comes out."""

    node: NodeProto
    plane: str
    normalised: str
    groups: int
    shape: Shape

    @property
    def epsilon(self) -> float:
        (found,) = (attribute.f for attribute in self.node.attribute if attribute.name == "epsilon")
        return float(found)

    def weights(self) -> dict[str, onnx.TensorProto]:
        """By their names in the formula; equal ones have equal names in the graph."""
        channels, height, width = self.shape
        each = channels // self.groups
        whole = np.full((channels, each, 1, 1), 1 / each, np.float32)
        values = {
            "average": (whole, f"norms.{channels}.{self.groups}"),
            "average_pixel": (
                whole / np.float32(height * width),
                f"norms.{channels}.{self.groups}.{height}.{width}",
            ),
            "epsilons": (np.full(channels, self.epsilon, np.float32), f"norms.{channels}.{self.epsilon:g}"),
        }
        return {role: numpy_helper.from_array(value, name) for role, (value, name) in values.items()}

    def nodes(self, names: Mapping[str, str]) -> list[NodeProto]:
        """The formula; its names are ``names`` or begin with that of the node which it replaces."""
        nodes = onnx.parser.parse_graph(_FORMULA.format(groups=self.groups, epsilon=self.epsilon)).node
        for new in nodes:
            new.name = f"{self.node.name}/{new.output[0]}"
            for ends in (new.input, new.output):
                ends[:] = [names.get(name, f"{self.node.name}/{name}") for name in ends]
        return list(nodes)


def plane_shapes(path: Path) -> dict[str, Shape]:
    """(C, H, W) of what is made in the graph and has four dimensions, as far as they are fixed."""
    model = onnx.load(str(path), load_external_data=False)
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {}
    for value in (*found.graph.input, *found.graph.value_info):
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if len(sizes) == 4 and all(sizes[1:]):
            shapes[value.name] = (sizes[1], sizes[2], sizes[3])
    return shapes


def normalise_by_channel(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> int:
    """Rewrites, in place, the group normalisations as the exporter writes them; how many there were.

    Those of planes that are small or whose shape is not in ``shapes`` stay, and so do other normalisations.
    """
    graph = model.graph
    found = {norm.normalised: norm for norm in _group_norms(graph, shapes)}
    weights: dict[str, onnx.TensorProto] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        norm = found.get(node.output[0])
        if norm is None:
            nodes.append(node)
            continue
        own = norm.weights()
        weights |= {weight.name: weight for weight in own.values()}
        names = {role: weight.name for role, weight in own.items()}
        nodes += norm.nodes(names | {"plane": norm.plane, "normalised": norm.normalised})
    graph.initializer.extend(weights.values())
    wanted = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):  # what only led to the old ones goes with them
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return len(found)


def _group_norms(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> Iterator[_GroupNorm]:
    """Reshape to [0, groups, -1], InstanceNormalization with factors of 1 and offsets of 0, Reshape back."""
    made = {name: node for node in graph.node for name in node.output}
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

    for node in graph.node:
        if node.op_type != "InstanceNormalization":
            continue
        gather, back = made.get(node.input[0]), users[node.output[0]]
        if gather is None or [gather.op_type, *(user.op_type for user in back)] != ["Reshape"] * 2:
            continue
        grouped, factors, offsets = (constant(name) for name in (gather.input[1], *node.input[1:]))
        if grouped.size != 3 or grouped[0] != 0 or (factors != 1).any() or (offsets != 0).any():
            continue
        shape = shapes.get(gather.input[0])
        if shape is not None and shape[1] * shape[2] >= PIXELS:
            yield _GroupNorm(node, gather.input[0], back[0].output[0], int(grouped[1]), shape)
