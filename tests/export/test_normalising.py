"""Group normalisation by channel: the same result, also where it is easily lost; other norms stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
onnx = pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.normalising import normalise_by_channel  # noqa: E402
from tests.conftest import absent  # noqa: E402
from tests.export.rewritten import rewrite, run  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rewritten(network: torch.nn.Module, path: Path, half: bool = False) -> tuple[onnx.ModelProto, int]:
    return rewrite(normalise_by_channel, network, torch.randn(1, 8, 16, 20), path, half)


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_the_result_is_the_same(tmp_path: Path) -> None:
    """Also of a batch, of constant planes and of planes far from zero."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.GroupNorm(4, 8),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.GroupNorm(2, 8, eps=1e-3),
    )
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape)
    model, count = rewritten(network, tmp_path / "norms.onnx")
    assert count == 2
    assert "InstanceNormalization" not in types(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)

    usual = torch.randn(2, 8, 16, 20)
    usual[1] *= torch.arange(1, 9).view(8, 1, 1)
    constant = torch.arange(8.0).div(2, rounding_mode="floor").view(1, 8, 1, 1).expand(1, 8, 16, 20)
    for plane, tolerance in ((usual, 1e-5), (constant, 1e-4), (usual + 100, 2e-2)):
        with torch.no_grad():
            wanted = network(plane).numpy()
        assert np.abs(run(model, plane) - wanted).max() < tolerance * np.abs(wanted).max()


class Timed(torch.nn.Module):
    """As the denoiser does it: a time scales and shifts, planes are joined with earlier ones, two use one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.GroupNorm(4, width) for width in (8, 16, 8))
        self.time = torch.nn.Linear(8, 16)

    def forward(self, plane: torch.Tensor) -> torch.Tensor:
        scale, shift = self.time(plane[:, :, 0, 0])[:, :, None, None].split(8, dim=1)
        scaled = self.first(plane) * (1 + scale) + shift
        joined = torch.relu(self.second(torch.cat((scaled.sigmoid(), plane), dim=1)))
        normalised = self.third(plane)
        return torch.cat((joined, normalised, normalised + plane), dim=1)


@pytest.mark.parametrize("provider", ["CPU", "OpenVINO"])
@pytest.mark.parametrize("half", [False, True])
def test_what_scales_and_joins_channels_is_part_of_it(provider: str, half: bool, tmp_path: Path) -> None:
    if f"{provider}ExecutionProvider" not in onnxruntime.get_available_providers():
        absent(f"the {provider} provider is not installed")
    torch.manual_seed(0)
    network = Timed()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape).half().float()  # what float16 holds
    model, count = rewritten(network, tmp_path / "timed.onnx", half)
    assert count == 3
    assert types(model)["ReduceMean"] == types(model)["ReduceL2"] == 2  # of the plane and of the sigmoid
    unsqueezed = {node.output[0] for node in model.graph.node if "_of_channel" in node.name}
    on_planes = [node.op_type for node in model.graph.node if unsqueezed.intersection(node.input)]
    assert Counter(on_planes) == {"Mul": 3, "Add": 3}

    for batch in (1, 3):
        plane = torch.randn(batch, 8, 16, 20)
        with torch.no_grad():
            wanted = network(plane).numpy()
        assert np.abs(run(model, plane, provider) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_another_normalisation_is_left_alone(tmp_path: Path) -> None:
    network = torch.nn.InstanceNorm2d(8, affine=True)
    torch.nn.init.normal_(network.weight)
    model, count = rewritten(network, tmp_path / "other.onnx")
    assert count == 0
    plane = torch.randn(2, 8, 16, 20)
    with torch.no_grad():
        assert np.abs(run(model, plane) - network(plane).numpy()).max() < 1e-5


def test_small_planes_are_not_worth_it(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.GroupNorm(4, 8), torch.nn.AvgPool2d(2), torch.nn.GroupNorm(4, 8))
    model, count = rewritten(network, tmp_path / "small.onnx")
    assert count == 1
    assert types(model)["InstanceNormalization"] == 1
