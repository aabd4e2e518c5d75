"""The restoration recipe in miniature: degradations, a tiny denoiser, sampling, ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side is not installed (make test-all)")
pytestmark = pytest.mark.torch

import torch  # noqa: E402

from export.restoration.degrade import KINDS, degrade  # noqa: E402
from export.restoration.diffusion import add_noise, alphas_cumprod, ddim  # noqa: E402
from export.restoration.evaluate import psnr, ssim  # noqa: E402
from export.restoration.network import Denoiser, Shape  # noqa: E402
from export.restoration.train import draw_batch, image_paths, loss_of, make_trainer, step  # noqa: E402
from export.shipping import export_graph, parity  # noqa: E402

TINY = Shape(widths=(8, 12, 16), blocks=(1, 1, 1), time=32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Eight smooth pictures with edges, (8, 64, 64) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:64] / 64
    pictures = []
    for _ in range(8):
        picture = 0.5 + 0.3 * np.sin(rng.uniform(4, 9) * x + rng.uniform(0, 6)) * np.cos(
            rng.uniform(4, 9) * y
        )
        picture[(x - rng.uniform(0.3, 0.7)) ** 2 + (y - 0.5) ** 2 < 0.05] -= 0.2
        pictures.append(np.round(np.clip(picture, 0, 1) * 255))
    return np.stack(pictures).astype(np.uint8)


@pytest.mark.parametrize("name", list(KINDS))
def test_each_degradation_costs_more_the_stronger(name: str, images: np.ndarray) -> None:
    image = images[0].astype(np.float32) / 255
    quality = [
        psnr(np.clip(KINDS[name](image, strength, np.random.default_rng(3)), 0, 1), image)
        for strength in (0.1, 0.9)
    ]
    assert quality[1] < quality[0] < 60


def test_some_examples_stay_untouched(images: np.ndarray) -> None:
    image = images[0].astype(np.float32) / 255
    rng = np.random.default_rng(0)
    drawn = [degrade(image, rng) for _ in range(200)]
    untouched = [result for result, names in drawn if not names]
    assert 10 < len(untouched) < 60
    assert all(np.array_equal(result, image) for result in untouched)
    assert all(result.min() >= 0 and result.max() <= 1 for result, _ in drawn)


def test_training_and_test_images_are_apart(data_dir: Path) -> None:
    parts = {p: {q.name for q in image_paths(data_dir, p)} for p in ("train", "validation", "test")}
    assert not parts["test"] & (parts["train"] | parts["validation"])
    patients = {p: {n.split("_")[0] for n in names if "_" in n} for p, names in parts.items()}
    assert not patients["test"] & (patients["train"] | patients["validation"])
    assert len(parts["test"]) > 200


def test_schedule_is_the_squared_cosine() -> None:
    from pacs_node.infer.cards import Diffusion
    from pacs_node.infer.sampling.noise import alpha_bar

    noise = Diffusion(schedule="squaredcos_cap_v2", train_steps=1000, prediction="sample")
    ours = alphas_cumprod().numpy()
    assert np.all(np.diff(ours) < 0)
    assert ours[0] > 0.9999
    assert ours[-1] < 1e-6
    assert np.allclose(ours, alpha_bar(noise), atol=1e-5)


def test_an_untrained_net_hardly_changes_the_image() -> None:
    condition = torch.rand(2, 1, 32, 32) * 2 - 1
    change = ddim(Denoiser(TINY).eval(), condition, steps=3) - condition
    assert float(change.abs().mean()) < 0.05


def measured(model: torch.nn.Module, batch: dict[str, torch.Tensor], alphas: torch.Tensor) -> float:
    """The loss on one batch that stays the same."""
    sample = add_noise(batch["clean"], batch["noise"], batch["timestep"], alphas)
    with torch.no_grad():
        prediction = model(sample, batch["condition"], batch["timestep"].float())
    return float(loss_of(prediction, batch["clean"], batch["condition"]))


def test_training_reduces_the_loss_and_resumes_exactly(tmp_path: Path, images: np.ndarray) -> None:
    torch.set_num_threads(1)
    alphas = alphas_cumprod()
    trainer = make_trainer(TINY, rate=4e-3)
    fixed = draw_batch(images, 64, 32, np.random.default_rng(99))
    before = measured(trainer.model, fixed, alphas)
    for _ in range(120):
        step(trainer, images, 8, 32, alphas)
    trainer.save(tmp_path / "a.pt")
    losses = [step(trainer, images, 8, 32, alphas)["loss"] for _ in range(30)]
    assert measured(trainer.model, fixed, alphas) < 0.95 * before

    resumed = make_trainer(TINY, rate=4e-3)
    resumed.load(tmp_path / "a.pt")
    assert [step(resumed, images, 8, 32, alphas)["loss"] for _ in range(30)] == losses
    for one, other in zip(trainer.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_onnx_is_the_torch_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Denoiser(TINY).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    inputs = {
        "sample": torch.randn(2, 1, 64, 64),
        "condition": torch.rand(2, 1, 64, 64) * 2 - 1,
        "timestep": torch.tensor([999.0, 10.0]),
    }
    path = tmp_path / "denoiser.onnx"
    export_graph(model, path, inputs, ["prediction"], half=False)
    assert max(parity(model, path, inputs, tolerance=1e-4)) < 1e-4
    export_graph(model, path, inputs, ["prediction"])
    assert max(parity(model, path, inputs, tolerance=5e-3)) > 0


def test_measures_on_known_images(images: np.ndarray) -> None:
    image = images[0].astype(np.float32) / 255
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-3)
    assert ssim(image, image) == pytest.approx(1)
    noisy = image + 0.1 * np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    assert 0.1 < ssim(noisy, image) < 0.9
