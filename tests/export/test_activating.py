"""SiLU as a polynomial: near enough everywhere, and nothing else is taken for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
onnx = pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.activating import ERROR, approximate_silu  # noqa: E402
from tests.export.rewritten import rewrite, run  # noqa: E402

pytestmark = pytest.mark.torch


class Others(torch.nn.Module):
    """Sigmoid of something else, and SiLU of a plane that is too small."""

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        gated = plane * (plane + 1).sigmoid()
        small = torch.nn.functional.silu(plane[:, :, :8, :8])
        return gated + small.mean((2, 3), keepdim=True)


def rewritten(network: torch.nn.Module, path: Path) -> tuple[onnx.ModelProto, int]:
    return rewrite(approximate_silu, network, torch.randn(1, 4, 32, 32), path)


def test_it_is_near_silu_everywhere(tmp_path: Path) -> None:
    model, count = rewritten(torch.nn.Sequential(torch.nn.SiLU(), torch.nn.SiLU()), tmp_path / "silu.onnx")
    assert count == 2
    assert "Sigmoid" not in {node.op_type for node in model.graph.node}

    model, count = rewritten(torch.nn.SiLU(), tmp_path / "silu.onnx")
    x = np.concatenate([np.linspace(-12, 12, 4095), [1e4]]).astype(np.float32).reshape(1, 4, 32, 32)
    difference = np.abs(run(model, torch.from_numpy(x)) - x / (1 + np.exp(-x.astype(np.float64))))
    assert 0.9 * ERROR < difference.max() < ERROR
    assert difference[np.abs(x) < 1e-3].max() < 1e-4
    (outer,) = run(model, torch.full((1, 4, 32, 32), -1e4))
    assert np.abs(outer).max() < 1e-4


def test_other_sigmoids_and_small_planes_are_left_alone(tmp_path: Path) -> None:
    network = Others()
    model, count = rewritten(network, tmp_path / "others.onnx")
    assert count == 0
    assert Counter(node.op_type for node in model.graph.node)["Sigmoid"] == 2
    plane = torch.randn(1, 4, 32, 32)
    assert np.abs(run(model, plane) - network(plane).numpy()).max() < 1e-5
