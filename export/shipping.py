"""From a torch module to a model folder: ONNX files, parity with torch enforced, card with digests.

Weights of more than EXTERNAL bytes lie in a file of their own beside the graph (ONNX external data): a
protocol buffer ends at 2 GB, and runtimes map such a file where they would hold several copies of a graph
(measured on the 1.5 GB U-Net of BS-LDM in the OpenVINO provider: 2.8 instead of 7.7 GB of memory, and loaded
in 6 instead of 24 s).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from pacs_node.infer.external_data import external_files

OPSET = 17
EXTERNAL = 256 << 20


def export_graph(
    module: torch.nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    half: bool = True,
    smallest: int = 256,
    free: Mapping[int, str] = MappingProxyType({0: "N"}),
) -> None:
    """Writes ``module`` as an ONNX graph whose first dimension is free.

    ``half``: weights of at least ``smallest`` values as float16. ``free`` leaves more dimensions open, where
    a big graph is made from small ``inputs``; ``set_sizes`` closes them.

    By the TorchScript exporter: graphs of torch 2.13's newer one with three inputs fail in the OpenVINO
    provider 1.24 ("Can't set the input tensor with index: 1").
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={
                name: dict(free) if name not in inputs or inputs[name].dim() > max(free) else {0: free[0]}
                for name in (*inputs, *outputs)
            },
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    if half:
        halve_weights(model, smallest)
    save_graph(model, path)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes and checks the graph; its weights beside it as ``<stem>.data`` if they are big."""
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)
    if sum(len(weight.raw_data) for weight in model.graph.initializer) > EXTERNAL:
        onnx.save(model, str(path), save_as_external_data=True, location=data.name, size_threshold=1024)
        data.chmod(path.stat().st_mode & 0o777)
    else:
        onnx.save(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def set_sizes(path: Path, sizes: Mapping[str, Sequence[int]]) -> None:
    """Sets the dimensions after the first of those inputs and outputs that ``sizes`` names."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in sizes:
            dimensions = value.type.tensor_type.shape.dim
            for dimension, size in zip(list(dimensions)[1:], sizes[value.name], strict=True):
                dimension.dim_value = size
    del model.graph.value_info[:]  # the sizes of the tensors between are others, too
    onnx.save(model, str(path))


def half_precision(path: Path, exact: Sequence[str]) -> onnx.ModelProto:
    """The graph computing in float16, for GPUs; inputs, outputs and nodes named ``exact…`` stay float32."""
    from onnx.external_data_helper import load_external_data_for_model
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Without its weights the graph is small enough for what finds the types of all tensors.
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    load_external_data_for_model(model, str(path.parent))
    kept = [node.name for node in model.graph.node if node.name.startswith(tuple(exact))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that round to nothing
        halved = convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=True, node_block_list=kept
        )
    OnnxModel.graph_topological_sort(halved.graph)  # the casts were put at its end
    return halved


def halve_weights(model: onnx.ModelProto, smallest: int) -> None:
    """Stores float32 weights of at least ``smallest`` values as float16 with a Cast; sums stay float32."""
    casts = []
    for weight in list(model.graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < smallest or np.abs(values).max() > 6e4:
            continue
        name = weight.name
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def parity(
    module: torch.nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    *,
    tolerance: float,
    aside: float = 0.0,
) -> list[float]:
    """Largest difference of each output to torch's, relative to its largest value; for N and for N = 1.

    The share ``aside`` of the largest differences is left aside, where rounding may make a jump.
    Raises ValueError above ``tolerance`` (half-precision storage costs about 1e-3).
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst: list[float] = []
    for count in {len(next(iter(inputs.values()))), 1}:
        given = {name: value[:count] for name, value in inputs.items()}
        found = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            wanted = module(*given.values())
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        errors = [
            float(np.quantile(np.abs(f - w.numpy()), 1 - aside) / max(np.abs(w.numpy()).max(), 1e-6))
            for f, w in zip(found, wanted, strict=True)
        ]
        worst = [max(pair) for pair in zip(worst or errors, errors, strict=True)]
    if max(worst) > tolerance:
        raise ValueError(f"{path}: ONNX differs from torch by {worst}, more than {tolerance}")
    return worst


def toml(value: Mapping[str, Any], prefix: str = "") -> str:
    """A nested mapping of strings, numbers, booleans and lists of them as TOML text."""
    plain = {k: v for k, v in value.items() if not isinstance(v, Mapping)}
    tables = {k: v for k, v in value.items() if isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_literal(v)}" for k, v in plain.items()]
    for key, table in tables.items():
        path = f"{prefix}.{_key(key)}" if prefix else _key(key)
        lines += ["", f"[{path}]", toml(table, path)]
    return "\n".join(lines)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        parts = [_literal(v) for v in value]
        if sum(map(len, parts)) > 90:
            return "[\n  " + ",\n  ".join(parts) + ",\n]"
        return "[" + ", ".join(parts) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes ``card.toml`` beside the files it names, with digests of them and of their external data."""
    tables = (card["files"], *card.get("variants", {}).values())
    graphs = list(dict.fromkeys(name for table in tables for name in table.values()))
    data = [name for graph in graphs for name in external_files(folder / graph)]
    digests = {name: _digest(folder / name) for name in dict.fromkeys((*graphs, *data))}
    ordered: dict[str, Any] = {}
    for key, value in card.items():
        ordered[key] = value
        if key == "files":
            ordered["digests"] = digests
    (folder / "card.toml").write_text(toml(ordered) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def put_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Replaces ``[figures]`` of the card in ``folder``, with today's date; digests stay."""
    path = folder / "card.toml"
    card = tomllib.loads(path.read_text(encoding="utf-8"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    card["figures"] = {"date": today, **figures}
    path.write_text(toml(card) + "\n", encoding="utf-8")
