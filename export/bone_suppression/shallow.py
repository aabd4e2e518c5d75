"""The denoiser's first level as a graph of its own, cut out of the whole one's.

A U-Net's levels below the first see a blurred picture, which changes little from one sampling step to the
next. So a step may take what came up from them in the step before (DeepCache; Ma, Fang and Wang, CVPR 2024,
arXiv 2312.00858): the shallow graph is given it as ``deep``, which the whole one then gives, too.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from export.rewriting import put_nodes
from export.shipping import save_graph

DEEP = "deep"


def cut(whole: Path, shallow: Path) -> bool:
    """Writes the graph ``shallow``; the one in ``whole`` then gives ``deep``. False, and nothing done, where
    there is one level.
    """
    model = onnx.load(str(whole), load_external_data=False)
    name = _deep(model.graph)
    if name is None:
        return False
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    height, width = (size.dim_value or size.dim_param for size in list(dimensions)[2:])
    value = helper.make_tensor_value_info(DEEP, TensorProto.FLOAT, ["N", "D", height, width])
    _save_shallow(model, name, value, shallow, whole.parent)
    model.graph.node.append(helper.make_node("Identity", [name], [DEEP], DEEP))
    model.graph.output.append(value)
    onnx.save(model, str(whole))  # its weights, where they lie beside it, stay there
    onnx.checker.check_model(str(whole), full_check=True)
    return True


def _deep(graph: onnx.GraphProto) -> str | None:
    """What comes up to the first level: what is joined first behind the last doubling of the side."""
    doublings = [number for number, node in enumerate(graph.node) if node.op_type == "Resize"]
    if not doublings:
        return None
    joining = next(node for node in graph.node[doublings[-1] :] if node.op_type == "Concat")
    return joining.input[0]


def _save_shallow(whole: ModelProto, deep: str, value: onnx.ValueInfoProto, path: Path, folder: Path) -> None:
    model = ModelProto.FromString(whole.SerializeToString())
    graph = model.graph
    for node in graph.node:
        node.input[:] = [DEEP if name == deep else name for name in node.input]
    put_nodes(graph, list(graph.node))
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in whole.graph.initializer if weight.name in used]
    del graph.initializer[:]
    del graph.value_info[:]
    graph.initializer.extend(weights)
    graph.input.append(value)
    load_external_data_for_model(model, str(folder))
    save_graph(model, path)
