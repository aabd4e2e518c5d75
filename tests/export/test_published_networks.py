"""Our full-size networks compute what the authors' modules do, under the authors' parameter names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")

from export.bone_suppression import unet, vqgan  # noqa: E402
from export.bone_suppression.published import BS_LDM, GL_LCM  # noqa: E402
from tests.export.filled import fill, names, summary  # noqa: E402

pytestmark = pytest.mark.torch

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "published.json").read_text())
SMALL = unet.Shape(width=32, multipliers=(1, 2, 2), blocks=2, attention=(2, 4), heads=4)


def given(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).random(shape, np.float32) * 2 - 1)


def error(output: torch.Tensor, golden: dict[str, Any]) -> float:
    """Largest difference of the values and of the sums, over the largest value."""
    found = summary(output)
    assert found["shape"] == golden["shape"]
    return max(np.abs(np.subtract(found[k], golden[k])).max() / golden["largest"] for k in ("values", "sums"))


@pytest.mark.slow
@pytest.mark.parametrize("published", [BS_LDM, GL_LCM], ids=lambda p: p.title)
def test_full_size_autoencoder(published: Any) -> None:
    golden = GOLDEN[f"{published.title} autoencoder"]
    with torch.device("meta"):
        model = vqgan.MLVQGAN(published.autoencoder)
    assert names(fill(model)) == golden["names"]
    latent = model.encode(given((1, 1, 64, 96), 1))
    assert error(latent, golden["latent"]) < 1e-5
    assert error(model.quantise(latent)[0], golden["quantised"]) < 1e-5
    assert error(model.decode(latent), golden["image"]) < 1e-5
    assert error(model.decoder(latent), golden["decoded"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("published", [BS_LDM, GL_LCM], ids=lambda p: p.title)
def test_full_size_denoiser(published: Any) -> None:
    golden = GOLDEN[f"{published.title} denoiser"]
    with torch.device("meta"):
        model = unet.UNet(published.denoiser)
    assert names(fill(model)) == golden["names"]
    assert error(model(given((1, 8, 32, 64), 2), torch.tensor([417.0])), golden["prediction"]) < 1e-5


@pytest.mark.parametrize("new", [False, True])
def test_small_denoiser_in_both_attention_orders(new: bool) -> None:
    golden = GOLDEN["small denoiser, new attention order" if new else "small denoiser"]
    shape = unet.Shape(**{**vars(SMALL), "new_attention_order": new})
    model = fill(unet.UNet(shape))
    assert names(model) == golden["names"]
    steps = torch.tensor([999.0, 3.0])
    assert error(model(given((2, 8, 16, 24), 3), steps), golden["prediction"]) < 1e-5


def test_codes_move_in_training_as_theirs_do() -> None:
    golden = GOLDEN["small autoencoder, one step of training"]
    model = fill(vqgan.MLVQGAN(vqgan.Shape(channels=(8, 16), residual=8, blocks=1, codes=16)))
    assert names(model) == golden["names"]
    image, loss = model.train()(given((2, 1, 32, 24), 4))
    codes = model.quantizer["quantizer"]
    for found, part in (
        (image, "image"),
        (loss[None], "loss"),
        (codes.embedding.weight, "codes"),
        (codes.ema_cluster_size, "counts"),
        (codes.ema_w, "sums"),
    ):
        assert error(found, golden[part]) < 1e-5, part
