"""The small networks that ship at present: their codes live on, the ONNX files do what torch does."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.bone_suppression import autoencoder, denoiser  # noqa: E402
from export.bone_suppression.ship import Decoder, Encoder  # noqa: E402
from export.shipping import export_graph, parity  # noqa: E402

pytestmark = pytest.mark.torch

TINY = autoencoder.Shape(channels=(8, 8, 16), blocks=1, codes=16, warm_up=60)
TINY_DENOISER = denoiser.Shape(widths=(16, 16, 16), time=16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_codes_that_nothing_uses_start_again() -> None:
    quantiser = autoencoder.Quantiser(8, 4, warm_up=0).train()
    latent = torch.randn(2, 4, 8, 8) * 0.01 + 5  # far from every code that it starts with
    for _ in range(200):
        quantiser(latent)
    assert len(quantiser.nearest(latent.permute(0, 2, 3, 1).reshape(-1, 4)).unique()) >= 6


def test_graphs_do_what_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = autoencoder.Autoencoder(TINY).eval().requires_grad_(False)
    image = torch.rand(2, 1, 64, 64) * 2 - 1
    latent = model.quantiser(model.encode(image))[0]
    decoder = Decoder(model.quantiser.codes, model.decoder)
    assert torch.equal(decoder(latent), model.decode(latent))
    net = denoiser.Denoiser(TINY_DENOISER).eval().requires_grad_(False)
    torch.nn.init.normal_(net.head[2].weight)
    inputs = {"sample": torch.randn(2, 4, 8, 8), "condition": latent, "timestep": torch.tensor([999.0, 3.0])}
    for module, given, output in (
        (Encoder(model.encoder), {"image": image}, "latent"),
        (decoder, {"latent": latent}, "image"),
        (net, inputs, "prediction"),
    ):
        export_graph(module, tmp_path / "graph.onnx", given, [output], half=False)
        assert max(parity(module, tmp_path / "graph.onnx", given, tolerance=1e-4)) < 1e-4
