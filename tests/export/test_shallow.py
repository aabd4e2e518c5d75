"""The denoiser's first level, cut out of its graph: with what lay deep it gives the same as the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
onnx = pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.activating import approximate_silu  # noqa: E402
from export.bone_suppression import unet  # noqa: E402
from export.bone_suppression.graphs import Denoiser  # noqa: E402
from export.bone_suppression.shallow import cut  # noqa: E402
from export.normalising import normalise_by_channel  # noqa: E402
from export.rewriting import plane_shapes  # noqa: E402
from export.shipping import export_graph, save_graph  # noqa: E402
from tests.export.filled import fill  # noqa: E402

pytestmark = pytest.mark.torch

SIDE = 16


def exported(path: Path, multipliers: tuple[int, ...]) -> unet.UNet:
    """The graph of a denoiser, rewritten as int8 ones are but for the rounding."""
    torch.set_num_threads(1)
    shape = unet.Shape(width=32, multipliers=multipliers, blocks=2, attention=(1, 2), heads=4)
    network = fill(unet.UNet(shape))
    inputs = given(0)
    export_graph(
        Denoiser(network, 1000),
        path,
        {name: torch.from_numpy(value) for name, value in inputs.items()},
        ["prediction"],
        half=False,
    )
    model, shapes = onnx.load(str(path)), plane_shapes(path)
    assert normalise_by_channel(model, shapes)
    approximate_silu(model, shapes)
    save_graph(model, path)
    return network


def given(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    planes = {name: rng.standard_normal((2, 4, SIDE, SIDE), np.float32) for name in ("sample", "condition")}
    return {**planes, "timestep": np.array([999, 400], np.float32)}


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("beside", [False, True])
def test_a_shallow_graph_does_the_rest_of_the_whole_one(
    tmp_path: Path, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``beside``: with the whole one's weights in a file of their own."""
    if beside:
        monkeypatch.setattr("export.shipping.EXTERNAL", 500_000)
    whole, shallow = tmp_path / "whole.onnx", tmp_path / "shallow.onnx"
    network = exported(whole, (1, 2, 2))
    assert (tmp_path / "whole.data").exists() == beside
    (before,) = opened(whole).run(["prediction"], given(0))
    assert cut(whole, shallow)

    prediction, deep = opened(whole).run(["prediction", "deep"], given(0))
    np.testing.assert_array_equal(prediction, before)
    assert deep.shape == (2, 64, SIDE, SIDE)  # of the second level, twice its side
    session = opened(shallow)
    (same,) = session.run(None, given(0) | {"deep": deep})
    np.testing.assert_allclose(same, prediction, rtol=0, atol=1e-5 * np.abs(prediction).max())
    # It looks at what it is given: another sample, another time, other depths each make another prediction.
    for other in ({"sample": given(1)["sample"]}, {"timestep": given(0)["timestep"] / 2}, {"deep": deep / 2}):
        (found,) = session.run(None, given(0) | {"deep": deep} | other)
        assert np.abs(found - prediction).max() > 1e-2 * np.abs(prediction).max()

    model = onnx.load(str(shallow))
    assert not any(node.op_type == "Resize" for node in model.graph.node)
    kept = sum(len(weight.raw_data) for weight in model.graph.initializer)
    assert 0 < kept < sum(4 * weight.numel() for weight in network.parameters()) / 2


def test_one_level_is_left_as_it_is(tmp_path: Path) -> None:
    whole = tmp_path / "whole.onnx"
    exported(whole, (1,))
    before = whole.read_bytes()
    assert not cut(whole, tmp_path / "shallow.onnx")
    assert whole.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["whole.onnx"]
