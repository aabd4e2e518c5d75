"""SiLU without its exponential, for graphs whose convolutions no longer outweigh it.

x sigmoid(x) = max(x, 0) - t sigmoid(-t) with t = |x|, and t sigmoid(-t) is a low bump that a polynomial
follows. What is activated is rounded to 255ths of its range anyhow. On two cores of a Xeon OpenVINO took 1.5
ms for 128 planes of 128 x 128 (the convolution behind them takes 4), and takes 0.7 like this.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from export.rewriting import PIXELS, Shape, formula, put_nodes

#: The greatest difference from SiLU. Where a plane reaches 3, int8 rounds it to steps of 0.013.
ERROR = 0.0032
#: ``c1`` to ``c6``, of t to t^6, follow -t sigmoid(-t) from 0 to ``limit``, where the polynomial is 0, with
#: the least greatest difference (by least squares whose weights grew where the difference was great).
_WEIGHTS = {
    "limit": 8.0,
    "c1": -5.30401477e-01,
    "c2": 3.42097326e-01,
    "c3": -8.81666952e-02,
    "c4": 1.11366958e-02,
    "c5": -6.75973819e-04,
    "c6": 1.53531449e-05,
}
_SILU = """
silu (float[N, C, H, W] x, float limit, float c1, float c2, float c3, float c4, float c5, float c6)
     => (float[N, C, H, W] activated) {
  size = Abs (x)
  t = Min (size, limit)
  p6 = Mul (t, c6)
  s5 = Add (p6, c5)
  p5 = Mul (t, s5)
  s4 = Add (p5, c4)
  p4 = Mul (t, s4)
  s3 = Add (p4, c3)
  p3 = Mul (t, s3)
  s2 = Add (p3, c2)
  p2 = Mul (t, s2)
  s1 = Add (p2, c1)
  bump = Mul (t, s1)
  positive = Relu (x)
  activated = Add (positive, bump)
}
"""


def approximate_silu(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> int:
    """Rewrites, in place, each product of a plane and its Sigmoid; how many there were.

    Those of planes that are small or whose shape is not in ``shapes`` stay.
    """
    graph = model.graph
    sigmoids = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Sigmoid"}
    names = {role: f"silu.{role}" for role in _WEIGHTS}
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.node:
        plane = next((sigmoids[name] for name in node.input if name in sigmoids), "")
        _, height, width = shapes.get(plane, (0, 0, 0))
        if node.op_type != "Mul" or plane not in node.input or height * width < PIXELS:
            nodes.append(node)
            continue
        count += 1
        nodes += formula(_SILU, node.name, {**names, "x": plane, "activated": node.output[0]})
    if count:
        graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.float32), names[role])
            for role, value in _WEIGHTS.items()
        )
    put_nodes(graph, nodes)
    return count
