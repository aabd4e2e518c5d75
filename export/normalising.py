"""Group normalisation from what each channel adds up to, so that planes keep the order of the convolutions.

The exporter writes it as InstanceNormalization of planes whose channels are gathered into groups. That wants
each channel in one piece, while convolutions on a processor have the channels of a pixel side by side, so
OpenVINO transposes every plane in front of it and again behind it. Mean and mean square of each channel need
no such order. A grouped convolution of these few numbers makes the means of groups of them, one for each
channel, and the subtraction and the factor that are left melt into the activation behind them. It is done in
int8 graphs, which only run on processors and whose convolutions leave the norms a larger part of the time: on
two cores of a Xeon a step of the full-size U-Net takes 8 % less.

The variance is the mean square less the square of the mean, so its relative error is float32's (6e-8) times
mean square over variance: 6e-4 where a group's mean is a hundred times its deviation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

#: ``plane`` (N, C, H, W) -> ``normalised``, the same; ``average`` (C, C / groups, 1, 1): see ``_average``.
_FORMULA = """
group_normalisation (float[N, C, H, W] plane, float[C, K, 1, 1] average) => (float[N, C, H, W] normalised) {{
  mean_of_channel = ReduceMean <axes = [2, 3]> (plane)
  mean = Conv <group = {groups}> (mean_of_channel, average)

  length = ReduceL2 <axes = [2, 3]> (plane)
  sum_of_squares = Mul (length, length)
  sides = Shape <start = 2> (plane)
  pixels = ReduceProd <keepdims = 0> (sides)
  divisor = Cast <to = 1> (pixels)
  mean_square_of_channel = Div (sum_of_squares, divisor)
  mean_square = Conv <group = {groups}> (mean_square_of_channel, average)

  squared_mean = Mul (mean, mean)
  difference = Sub (mean_square, squared_mean)
  variance = Relu (difference)
  epsilon = Constant <value_float = {epsilon:.9g}> ()
  raised = Add (variance, epsilon)
  deviation = Sqrt (raised)
  factor = Reciprocal (deviation)
  centred = Sub (plane, mean)
  normalised = Mul (centred, factor)
}}
"""


class _GroupNorm(NamedTuple):
    """``node``: its InstanceNormalization; ``plane``, ``normalised``: what goes in and comes out."""

    node: NodeProto
    plane: str
    normalised: str
    groups: int
    channels: int


def normalise_by_channel(model: onnx.ModelProto) -> int:
    """Rewrites, in place, the group normalisations as the exporter writes them; how many there were.

    What multiplies and shifts the channels behind them stays, and so do normalisations of another form.
    """
    graph = model.graph
    found = {norm.normalised: norm for norm in _group_norms(graph)}
    averages = {(norm.channels, norm.groups): _average(norm.channels, norm.groups) for norm in found.values()}
    graph.initializer.extend(averages.values())
    nodes: list[NodeProto] = []
    for node in graph.node:
        norm = found.get(node.output[0])
        nodes += _formula(norm, averages[norm.channels, norm.groups].name) if norm else [node]
    wanted = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):  # what only led to the old ones goes with them
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return len(found)


def _group_norms(graph: onnx.GraphProto) -> Iterator[_GroupNorm]:
    """Reshape to [0, groups, -1], InstanceNormalization with factors of 1 and offsets of 0, Reshape back, and
    Mul by the module's weight, which tells the number of channels.
    """
    made = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight for weight in graph.initializer}
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
        shape, factors, offsets = (constant(name) for name in (gather.input[1], *node.input[1:]))
        if shape.size != 3 or shape[0] != 0 or (factors != 1).any() or (offsets != 0).any():
            continue
        scale = users[back[0].output[0]]
        if [user.op_type for user in scale] != ["Mul"]:
            continue
        name = scale[0].input[1]
        stored = made[name].input[0] if name in made and made[name].op_type == "Cast" else name  # halved
        if stored in weights:
            channels = weights[stored].dims[0]
            yield _GroupNorm(node, gather.input[0], back[0].output[0], int(shape[1]), channels)


def _average(channels: int, groups: int) -> onnx.TensorProto:
    """The grouped convolution that gives every channel the mean of its group's."""
    each = channels // groups
    return numpy_helper.from_array(
        np.full((channels, each, 1, 1), 1 / each, np.float32), f"average.{channels}.{groups}"
    )


def _formula(norm: _GroupNorm, average: str) -> list[NodeProto]:
    """The formula for ``norm``; the names within it begin with that of the node that it replaces."""
    (epsilon,) = (attribute.f for attribute in norm.node.attribute if attribute.name == "epsilon")
    names = {"plane": norm.plane, "average": average, "normalised": norm.normalised}
    nodes = onnx.parser.parse_graph(_FORMULA.format(groups=norm.groups, epsilon=epsilon)).node
    for new in nodes:
        new.name = f"{norm.node.name}/{new.output[0]}"
        for ends in (new.input, new.output):
            ends[:] = [names.get(name, f"{norm.node.name}/{name}") for name in ends]
    return list(nodes)
