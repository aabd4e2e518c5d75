"""From a torch module to a model folder: ONNX with half-size weights, parity with torch enforced.

Card with digests.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET = 17


def export_graph(
    module: torch.nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    half: bool = True,
    smallest: int = 256,
) -> None:
    """Writes ``module`` as one ONNX file whose first dimension is free.

    ``half``: weights of at least ``smallest`` values as float16.

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
            dynamic_axes={name: {0: "N"} for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    if half:
        halve_weights(model, smallest)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


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
    module: torch.nn.Module, path: Path, inputs: Mapping[str, Tensor], *, tolerance: float
) -> list[float]:
    """Largest difference of each output to torch's, relative to its largest value; for N and for N = 1.

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
            float(np.abs(f - w.numpy()).max() / max(np.abs(w.numpy()).max(), 1e-6))
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
    """Writes ``card.toml`` beside the files named in ``card["files"]``, with their digests."""
    digests = {
        name: "sha256:" + hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in card["files"].values()
    }
    ordered: dict[str, Any] = {}
    for key, value in card.items():
        ordered[key] = value
        if key == "files":
            ordered["digests"] = digests
    (folder / "card.toml").write_text(toml(ordered) + "\n", encoding="utf-8")


def put_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Replaces ``[figures]`` of the card in ``folder``, with today's date; digests stay."""
    path = folder / "card.toml"
    card = tomllib.loads(path.read_text(encoding="utf-8"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    card["figures"] = {"date": today, **figures}
    path.write_text(toml(card) + "\n", encoding="utf-8")
