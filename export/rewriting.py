"""What rewritings of exported graphs share: the planes' shapes, formulas as nodes, the graph's new nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.parser
from onnx import NodeProto

#: Planes of fewer pixels gain less than the loading of the additional nodes takes.
PIXELS = 256
Shape = tuple[int, int, int]


def plane_shapes(path: Path) -> dict[str, Shape]:
    """(C, H, W) of what the graph gets, makes or keeps and what has these dimensions alone or behind a
    batch's, as far as they are fixed.
    """
    model = onnx.load(str(path), load_external_data=False)
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {weight.name: tuple(weight.dims) for weight in found.initializer}
    for value in (*found.input, *found.value_info):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    return {
        name: (sizes[-3], sizes[-2], sizes[-1])
        for name, sizes in shapes.items()
        if len(sizes) in (3, 4) and all(sizes[-3:])
    }


def formula(text: str, place: str, names: Mapping[str, str]) -> Iterator[NodeProto]:
    """The nodes of a graph in ONNX's textual syntax. Its names become ``names`` or begin with ``place``."""
    for node in onnx.parser.parse_graph(text).node:
        node.name = f"{place}/{node.output[0]}"
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, f"{place}/{name}") for name in ends]
        yield node


def put_nodes(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    """They take the place of all nodes, but for those that lead to no output."""
    wanted = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(NodeProto.FromString(node.SerializeToString()))  # the graph's own are about to go
    del graph.node[:]
    graph.node.extend(reversed(kept))
