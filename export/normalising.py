"""Group normalisation from what each channel adds up to, so that planes keep the order of the convolutions.

The exporter writes it as InstanceNormalization of planes whose channels are gathered into groups. That wants
each channel in one piece, while convolutions on a processor have the channels of a pixel side by side, so
OpenVINO transposes every plane in front of it and again behind it. Mean and mean square of each channel need
no such order, and a group's are the means of its channels', a few numbers. The factor and the subtraction
that are left melt into the activation behind them. It is done in int8 graphs, which only run on processors
and whose convolutions leave the norms a larger part of the time: on two cores of a Xeon a step of the
full-size U-Net takes 8 % less.

The variance is the mean square less the square of the mean, so its relative error is float32's (6e-8) times
mean square over variance: 6e-4 where a group's mean is a hundred times its deviation.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

#: ``plane`` (N, C, H, W) -> ``normalised``, the same; ``groups``: the shape [0, groups, -1].
_FORMULA = """
group_normalisation (float[N, C, H, W] plane, int64[3] groups) => (float[N, C, H, W] normalised) {{
  average = ReduceMean <axes = [2, 3]> (plane)
  averages = Reshape (average, groups)
  mean = ReduceMean <axes = [2]> (averages)

  length = ReduceL2 <axes = [2, 3]> (plane)
  total = Mul (length, length)
  sides = Shape <start = 2> (plane)
  pixels = ReduceProd <keepdims = 0> (sides)
  divisor = Cast <to = 1> (pixels)
  square = Div (total, divisor)
  squares = Reshape (square, groups)
  mean_square = ReduceMean <axes = [2]> (squares)

  squared_mean = Mul (mean, mean)
  difference = Sub (mean_square, squared_mean)
  variance = Relu (difference)
  epsilon = Constant <value_float = {epsilon:.9g}> ()
  raised = Add (variance, epsilon)
  deviation = Sqrt (raised)
  factor = Reciprocal (deviation)
  offset = Mul (mean, factor)

  sizes = Shape (averages)
  factors = Expand (factor, sizes)
  offsets = Expand (offset, sizes)
  channels = Constant <value_ints = [0, -1, 1, 1]> ()
  times = Reshape (factors, channels)
  less = Reshape (offsets, channels)
  scaled = Mul (plane, times)
  normalised = Sub (scaled, less)
}}
"""


def normalise_by_channel(model: onnx.ModelProto) -> int:
    """Rewrites, in place, the group normalisations as the exporter writes them; how many there were.

    The weights behind them stay as they are. An InstanceNormalization of another form is left alone.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)

    def exported(node: NodeProto) -> bool:
        """Reshape to [0, groups, -1], the node with factors of 1 and offsets of 0, and Reshape back."""
        gather, factor, offset = (made.get(name) for name in node.input)
        back = [user.op_type for user in users[node.output[0]]]
        if gather is None or gather.op_type != "Reshape" or back != ["Reshape"]:
            return False
        shape = _constant(made.get(gather.input[1]))
        plain = bool((_constant(factor) == 1).all() and (_constant(offset) == 0).all())
        return plain and shape.size == 3 and shape[0] == 0 and shape[2] == -1

    instead: dict[str, list[NodeProto]] = {}  # by what the last of the three gives
    for node in model.graph.node:
        if node.op_type == "InstanceNormalization" and exported(node):
            gather, normalised = made[node.input[0]], users[node.output[0]][0].output[0]
            instead[normalised] = _formula(node, *gather.input, normalised)
    nodes = [new for node in model.graph.node for new in instead.get(node.output[0], [node])]
    wanted = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):  # what only led to the old ones goes with them
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return len(instead)


def _constant(node: NodeProto | None) -> NDArray[np.generic]:
    """What a Constant holds; nothing equals what any other node holds."""
    if node is None or node.op_type != "Constant":
        return np.array(np.nan)
    return numpy_helper.to_array(node.attribute[0].t)


def _formula(node: NodeProto, plane: str, groups: str, normalised: str) -> list[NodeProto]:
    """The formula for these names; the names within it begin with that of ``node``."""
    (epsilon,) = (attribute.f for attribute in node.attribute if attribute.name == "epsilon")
    nodes = onnx.parser.parse_graph(_FORMULA.format(epsilon=epsilon)).node
    names = {"plane": plane, "groups": groups, "normalised": normalised}
    for new in nodes:
        new.name = f"{node.name}/{new.output[0]}"
        for ends in (new.input, new.output):
            ends[:] = [names.get(name, f"{node.name}/{name}") for name in ends]
    return list(nodes)
