"""int8 graphs: the range of the convolutions' inputs, and a graph whose convolutions multiply 8-bit integers.

The result is in ONNX's QDQ form (QuantizeLinear, DequantizeLinear), which ONNX Runtime's providers turn into
integer convolutions. Inputs are unsigned with a zero point, as activations lean to one side; weights are
signed with a factor for each output channel (Krishnamoorthi, arXiv 1806.08342). Only convolutions with
many channels are rounded: that is where the time goes. Those of few channels (first and last), norms and what
attention multiplies stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.rewriting import put_nodes

#: Fewer input or output channels than this are not worth rounding.
CHANNELS = 16
#: The axis of a weight's output channels.
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1}
Range = tuple[float, float]


def convolutions(model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes that are worth rounding, in order."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in OUTPUT_AXIS and min(shapes.get(node.input[1], (0,))[:2]) >= CHANNELS
    ]


def ranges(path: Path, examples: Iterable[Mapping[str, NDArray[np.float32]]]) -> dict[str, Range]:
    """Least and greatest value of each such convolution's input over all ``examples`` of the graph's inputs.

    They are found within the graph, so that two numbers a convolution leave it and no planes.
    """
    model = onnx.load(str(path), load_external_data=False)
    inputs = list(dict.fromkeys(node.input[0] for node in convolutions(model)))
    del model.graph.output[:]
    for number, name in enumerate(inputs):
        for end in ("Min", "Max"):
            found = f"range.{number}.{end}"
            model.graph.node.append(helper.make_node(f"Reduce{end}", [name], [found], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, []))
    beside = path.with_name(f"{path.stem}.ranges.onnx")  # beside the data that it refers to
    try:
        onnx.save(model, str(beside))
        del model
        session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])
    finally:
        beside.unlink(missing_ok=True)
    seen = np.array([session.run(None, dict(example)) for example in examples], np.float64)
    low, high = seen[:, 0::2].min(0), seen[:, 1::2].max(0)
    return {name: (float(a), float(b)) for name, a, b in zip(inputs, low, high, strict=True)}


def quantise(model: onnx.ModelProto, limits: Mapping[str, Range]) -> None:
    """Rounds, in place, the convolutions whose inputs' ranges are in ``limits``."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    chosen = {node.output[0] for node in convolutions(model) if node.input[0] in limits}
    nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for node in model.graph.node:
        if node.output[0] in chosen:
            given, weight = node.input[0], weights[node.input[1]]
            if given not in rounded:
                nodes += _round_input(model, given, limits[given])
            if weight.name not in rounded:  # two may share one: the exporter merges equal weights
                nodes += _round_weight(model, weight, OUTPUT_AXIS[node.op_type])
            rounded |= {given, weight.name}
            node.input[0], node.input[1] = f"{given}.rounded", f"{weight.name}.rounded"
        nodes.append(node)
    put_nodes(model.graph, nodes)


def _round_input(model: onnx.ModelProto, name: str, limits: Range) -> list[NodeProto]:
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)  # zero, the padding's value, is met exactly
    scale = (high - low) / 255 or 1.0
    factors = _constants(model, name, np.float32(scale), np.uint8(np.round(-low / scale)))
    return [
        helper.make_node("QuantizeLinear", [name, *factors], [f"{name}.integers"], f"{name}.quantise"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.integers", *factors], [f"{name}.rounded"], f"{name}.dequantise"
        ),
    ]


def _round_weight(model: onnx.ModelProto, weight: TensorProto, axis: int) -> list[NodeProto]:
    name, values = weight.name, numpy_helper.to_array(weight)
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.maximum(np.abs(values).max(axis=others) / 127, np.float32(1e-12)).astype(np.float32)
    integers = np.round(values / np.expand_dims(scale, others)).astype(np.int8)
    weight.CopyFrom(numpy_helper.from_array(integers, name))
    factors = _constants(model, name, scale, np.zeros(len(scale), np.int8))
    return [
        helper.make_node(
            "DequantizeLinear", [name, *factors], [f"{name}.rounded"], f"{name}.dequantise", axis=axis
        )
    ]


def _constants(model: onnx.ModelProto, name: str, scale: np.ndarray, zero: np.ndarray) -> tuple[str, str]:
    names = f"{name}.scale", f"{name}.zero"
    for constant, value in zip(names, (scale, zero), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
    return names
