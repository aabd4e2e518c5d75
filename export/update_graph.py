"""The update of every sampler as one small ONNX graph: ``python -m export.update_graph`` writes it.

Inputs: what the network predicted, the registers of the loop (the point x, the kept point, the last two clean
estimates), noise, and the numbers of the step. Outputs: the next registers. See pacs_node/infer/sampling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pacs_node.infer.sampling.loop import UPDATE, UPDATE_GRAPH
from pacs_node.infer.sampling.step import COEFFICIENTS

OPSET, IR_VERSION = 17, 8
#: Keeps norms and deviations of nothing from dividing by zero; its square's inverse is finite in float32.
TINY = 1e-12


class _Graph:
    """Nodes by the name of what they give."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, operator: str, inputs: str, output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs.split(), [output], output, **attributes))
        return output


def model() -> onnx.ModelProto:
    """The graph; the same bytes at every call."""
    node = _Graph()
    node.nodes.append(helper.make_node("Split", ["coefficients", "ones"], [f"c_{c}" for c in COEFFICIENTS]))

    # Local-enhanced guidance: guidance * p + scatter, the scatter's noise divided by the deviation of p.
    node("ReduceMean", "prediction", "mean", axes=[1, 2, 3], keepdims=1)
    node("Sub", "prediction mean", "centred")
    node("Mul", "centred centred", "squares")
    node("ReduceMean", "squares", "variance", axes=[1, 2, 3], keepdims=1)
    node("Sqrt", "variance", "deviation_or_0")
    node("Max", "deviation_or_0 tiny", "deviation")
    node("Div", "guidance_noise deviation", "scatter")
    node("Mul", "prediction guidance", "amplified")
    node("Add", "amplified scatter", "guided")

    node("Mul", "x c_point", "from_point")
    node("Mul", "guided c_prediction", "from_prediction")
    node("Add", "from_point from_prediction", "combined")
    node("Mul", "combined c_gain", "estimate")
    node("Neg", "limit", "lowest")
    node("Max", "estimate lowest", "above")
    node("Min", "above limit", "clean_next")

    # keep * x + (1 - keep) * base
    node("Sub", "one c_keep", "leave")
    node("Mul", "x c_keep", "kept")
    node("Mul", "base leave", "left")
    node("Add", "kept left", "base_next")

    # Langevin: e = langevin * (mean |z| / mean |score|)^2
    node("Mul", "clean_next c_score_clean", "score_from_clean")
    node("Mul", "x c_score_point", "score_from_point")
    node("Add", "score_from_clean score_from_point", "score")
    for name in ("noise", "score"):
        node("Mul", f"{name} {name}", f"{name}_squares")
        node("ReduceSum", f"{name}_squares image_axes", f"{name}_sum", keepdims=1)
        node("Sqrt", f"{name}_sum", f"{name}_norm")
        node("ReduceMean", f"{name}_norm", f"{name}_mean", axes=[0], keepdims=1)
    node("Max", "score_mean tiny", "score_mean_safe")
    node("Div", "noise_mean score_mean_safe", "quotient")
    node("Mul", "quotient quotient", "quotient_squared")
    node("Mul", "quotient_squared c_langevin", "stride")
    node("Add", "stride stride", "twice")
    node("Sqrt", "twice", "shake")
    node("Mul", "score stride", "ascent")

    node("Add", "c_noise shake", "noise_factor")
    terms = ["ascent"]
    for value, factor in (
        ("clean_next", "c_clean"),
        ("last", "c_last"),
        ("before", "c_before"),
        ("x", "c_noisy"),
        ("base_next", "c_base"),
        ("noise", "noise_factor"),
        # 0 * inf is not a number: what the network made of its bounds shows, though the estimate is limited.
        ("prediction", "c_watch"),
    ):
        terms.append(node("Mul", f"{value} {factor}", f"term_{value}"))
    total = terms[0]
    for i, term in enumerate(terms[1:], 1):
        total = node("Add", f"{total} {term}", "x_next" if i == len(terms) - 1 else f"sum_{i}")
    node("Identity", "last", "before_next")

    constants = {
        "ones": np.ones(len(COEFFICIENTS), np.int64),
        "tiny": np.array([TINY], np.float32),
        "one": np.array([1.0], np.float32),
        "image_axes": np.array([1, 2, 3], np.int64),
    }
    graph = helper.make_graph(
        node.nodes,
        "update",
        [_tensor(*item) for item in UPDATE_GRAPH.inputs.items()],
        [_tensor(*item) for item in UPDATE_GRAPH.outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(made, full_check=True)
    return made


def _tensor(name: str, dimensions: tuple[str, ...]) -> onnx.ValueInfoProto:
    shape = [int(d) if d.isdigit() else d for d in dimensions]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def main(path: Path = UPDATE) -> None:
    """Writes the graph to where the runtime looks for it."""
    path.write_bytes(model().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
