"""Bone suppression: pairs are checked, training learns and resumes exactly, the ONNX files do what torch
does.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch side (make test-all)")
pytest.importorskip("onnx", reason="the torch side (make test-all)")

from export.bone_suppression import autoencoder, denoiser  # noqa: E402
from export.bone_suppression.data import Pair, held_out, read_pairs, vary  # noqa: E402
from export.bone_suppression.evaluate import bone_suppression_ratio  # noqa: E402
from export.bone_suppression.ship import Decoder, Encoder  # noqa: E402
from export.bone_suppression.train import (  # noqa: E402
    ADVERSARIAL_FROM,
    autoencoder_step,
    autoencoder_trainer,
    denoiser_step,
    denoiser_trainer,
    latent_scale,
)
from export.restoration.diffusion import alphas_cumprod  # noqa: E402
from export.shipping import export_graph, parity  # noqa: E402
from pacs_node.phantom import Phantom  # noqa: E402

pytestmark = pytest.mark.torch

TINY = autoencoder.Shape(channels=(8, 8, 16), blocks=1, codes=16, warm_up=60)
TINY_DENOISER = denoiser.Shape(widths=(16, 16, 16), time=16)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    shown = [Phantom(seed).render(96) for seed in range(2)]
    return [
        Pair(str(i), *(np.uint8(np.clip(x, 0, 1) * 255) for x in (s.radiograph, s.soft_tissue)))
        for i, s in enumerate(shown)
    ]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write(folder: Path, name: str, radiograph: np.ndarray, soft: np.ndarray | None) -> None:
    for part, image in (("cxr", radiograph), ("soft_tissue", soft)):
        (folder / part).mkdir(exist_ok=True)
        if image is not None:
            cv2.imwrite(str(folder / part / name), image)


def test_pairs_are_read_and_a_pixel_too_many_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path, "a.png", np.full((40, 30), 9, np.uint8), np.full((41, 30), 7, np.uint8))
    (pair,) = read_pairs(tmp_path, None)
    assert pair.radiograph.shape == pair.soft_tissue.shape == (40, 30)
    assert (pair.radiograph == 9).all()
    assert (pair.soft_tissue == 7).all()


@pytest.mark.parametrize(
    ("soft", "error", "words"),
    [
        (None, FileNotFoundError, "has no twin"),
        (np.zeros((44, 30), np.uint8), ValueError, "same field"),
    ],
)
def test_a_pair_that_is_none_is_named(
    tmp_path: Path, soft: np.ndarray | None, error: type[Exception], words: str
) -> None:
    write(tmp_path, "a.png", np.zeros((40, 30), np.uint8), soft)
    with pytest.raises(error, match=words):
        read_pairs(tmp_path)


def test_a_folder_without_pairs_and_a_file_that_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no radiographs"):
        read_pairs(tmp_path)
    write(tmp_path, "a.png", np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    (tmp_path / "cxr" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="not a readable image"):
        read_pairs(tmp_path)


def test_one_in_eight_is_held_out() -> None:
    share = np.mean([held_out(f"JPCLN{i:03d}.jpg") for i in range(2000)])
    assert 0.1 < share < 0.15


def test_variation_keeps_a_pair_a_pair(pairs: list[Pair]) -> None:
    """Where there is no bone, the two images stay the same; where there is, the bone keeps its sign."""
    for seed in range(20):
        radiograph, soft = vary(pairs[0], np.random.default_rng(seed))
        assert radiograph.min() >= -1
        assert radiograph.max() <= 1
        plain = pairs[0].radiograph.astype(int) - pairs[0].soft_tissue
        for side in (plain, plain[:, ::-1]):
            same = side == 0
            if np.allclose(radiograph[same], soft[same], atol=1e-5):
                assert (radiograph[side > 0] >= soft[side > 0] - 1e-5).all()
                break
        else:
            pytest.fail(f"seed {seed}: pixels without bone differ")


def test_training_learns_and_resumes_exactly(tmp_path: Path, pairs: list[Pair]) -> None:
    trainer = autoencoder_trainer(TINY)
    trainer.rate, trainer.warm_up = 4e-3, 5
    first = [autoencoder_step(trainer, pairs, pairs, 2, 64)["distance"] for _ in range(100)]
    trainer.save(tmp_path / "trainer.pt")
    onward = [autoencoder_step(trainer, pairs, pairs, 2, 64)["distance"] for _ in range(5)]
    again = autoencoder_trainer(TINY)
    again.rate, again.warm_up = trainer.rate, trainer.warm_up
    again.load(tmp_path / "trainer.pt")
    assert [autoencoder_step(again, pairs, pairs, 2, 64)["distance"] for _ in range(5)] == onward
    assert np.mean(first[-20:]) < 0.8 * np.mean(first[:10])


def test_discriminator_joins_late_and_learns(pairs: list[Pair]) -> None:
    trainer = autoencoder_trainer(TINY)
    trainer.iteration = ADVERSARIAL_FROM
    before = {k: v.clone() for k, v in trainer.model.discriminator.state_dict().items()}
    terms = autoencoder_step(trainer, pairs, pairs, 2, 64)
    assert terms["adversarial"] > 0
    assert terms["discriminator"] > 0
    after = trainer.model.discriminator.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_denoiser_learns_to_suppress(pairs: list[Pair]) -> None:
    torch.manual_seed(3)
    encoder = autoencoder.Autoencoder(TINY).eval().requires_grad_(False)
    scale, alphas = latent_scale(encoder, pairs), alphas_cumprod()
    trainer = denoiser_trainer(TINY_DENOISER)
    runs = [denoiser_step(trainer, encoder, scale, pairs, 4, 64, alphas) for _ in range(100)]
    assert runs[0]["error"] == pytest.approx(
        runs[0]["unchanged"], rel=0.02
    )  # untrained, it suppresses nothing
    ratio = [run["error"] / run["unchanged"] for run in runs]
    assert np.mean(ratio[-15:]) < 0.97


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


def test_bone_suppression_ratio() -> None:
    rng = np.random.default_rng(0)
    soft = rng.random((32, 32))
    bone = np.zeros((32, 32))
    bone[8:12] = 0.3
    assert bone_suppression_ratio(soft + bone, soft + bone, soft) == pytest.approx(0)
    assert bone_suppression_ratio(soft, soft + bone, soft) == pytest.approx(1)
    assert bone_suppression_ratio(soft + bone / 2, soft + bone, soft) == pytest.approx(0.75)
