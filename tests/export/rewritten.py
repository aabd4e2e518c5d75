"""Exported graphs that are rewritten: made, checked and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from export.rewriting import Shape, plane_shapes
from export.shipping import export_graph

Rewriting = Callable[[onnx.ModelProto, Mapping[str, Shape]], int]


def rewrite(
    how: Rewriting, network: torch.nn.Module, plane: torch.Tensor, path: Path, half: bool = False
) -> tuple[onnx.ModelProto, int]:
    """What comes of the network's graph, and ``how``'s count; ``half``: with weights stored as float16."""
    export_graph(network, path, {"plane": plane}, ["out"], half=half, smallest=1)
    model = onnx.load(str(path))
    count = how(model, plane_shapes(path))
    onnx.checker.check_model(model, full_check=True)
    return model, count


def run(model: onnx.ModelProto, plane: torch.Tensor, provider: str = "CPU") -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=[f"{provider}ExecutionProvider"]
    )
    (out,) = session.run(None, {"plane": plane.numpy()})
    return np.asarray(out)
