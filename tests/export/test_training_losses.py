"""The losses of ML-VQGAN against other implementations and by what they are for; validation's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side is not installed (make test-all)")
pytestmark = pytest.mark.torch

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from export.bone_suppression.features import features  # noqa: E402
from export.bone_suppression.losses import (  # noqa: E402
    PROTECTION,
    VGG16,
    Discriminator,
    difference,
    fooled,
    ms_ssim,
    told_apart,
    vgg16,
)
from export.bone_suppression.metrics import (  # noqa: E402
    bone_suppression_ratio,
    published_bone_suppression_ratio,
)
from export.training import TrainingError  # noqa: E402


@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    """(1, 1, 192, 192) in [-0.9, 0.9]."""
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(192.0), indexing="ij")
    return (torch.sin(x / 5) * torch.cos(y / 9) * 0.6 + torch.sin((x + y) / 23) * 0.3)[None, None]


def test_ms_ssim_is_that_of_others(waves: torch.Tensor) -> None:
    """0.97442460 and 0.99881929: pytorch_msssim as GL-LCM's repository carries it (271e373, one image a
    batch, val_range 2, relu); MONAI 1.6.1's MultiScaleSSIMMetric(2, data_range=2) gives 0.9744 and 0.9988.
    """
    y, x = torch.meshgrid(torch.arange(192.0), torch.arange(192.0), indexing="ij")
    worse = waves * 0.9 + 0.05 + 0.05 * torch.sin(x * 1.7 + y * 0.9)
    blurred = F.avg_pool2d(waves, 5, 1, 2)
    found = ms_ssim(torch.cat([worse, blurred]), waves.expand(2, -1, -1, -1))
    assert found.tolist() == pytest.approx([0.97442460, 0.99881929], abs=2e-6)
    assert ms_ssim(waves, waves).item() == pytest.approx(1, abs=1e-6)


def test_ms_ssim_of_small_and_of_opposite_images(waves: torch.Tensor) -> None:
    small = waves[..., :40, :40]
    assert ms_ssim(small, small).item() == pytest.approx(1, abs=1e-6)
    opposite = (-small).requires_grad_()
    ms_ssim(opposite, small).sum().backward()
    assert torch.isfinite(opposite.grad).all()
    with pytest.raises(TrainingError, match="too small"):
        ms_ssim(waves[..., :8, :8], waves[..., :8, :8])


def test_an_edge_that_is_missed_counts_more_than_a_shade() -> None:
    true = torch.zeros(1, 1, 64, 64)
    true[..., 20:40, :] = 1
    blurred = F.avg_pool2d(F.pad(true, (4, 4, 4, 4), mode="replicate"), 9, 1)
    shade = torch.full_like(true, float((blurred - true).abs().mean()))
    assert difference(true, true) == 0
    assert difference(true - shade, true) == pytest.approx(float(shade.mean()))  # constant: no edges in it
    assert difference(blurred, true) > 2 * difference(true - shade, true)
    everywhere = torch.ones_like(true)
    assert difference(true + shade, true, everywhere) == pytest.approx(PROTECTION * float(shade.mean()))
    assert difference(true - shade, true, everywhere) == difference(true - shade, true)
    assert difference(true + shade, true, 0 * everywhere) == difference(true + shade, true)


def test_default_features_see_lost_structure_before_tone(waves: torch.Tensor) -> None:
    """Of two changes with the same squared error, the one that blurs counts."""
    distance = features()
    blurred = F.avg_pool2d(waves, 9, 1, 4, count_include_pad=False)
    brighter = waves + (blurred - waves).square().mean().sqrt()
    assert distance(waves, waves) == 0
    assert distance(blurred, waves) > 5 * distance(brighter, waves)
    learning = blurred.clone().requires_grad_()
    before = distance(learning, waves)
    before.backward()
    downhill = learning.grad / learning.grad.square().mean().sqrt()
    assert distance(blurred - 1e-3 * downhill, waves) < before


def test_a_given_vgg16_is_used(tmp_path: Path, waves: torch.Tensor) -> None:
    torch.manual_seed(0)
    state, number, before = {}, 0, 3
    for level, widths in enumerate(VGG16):
        number += bool(level)
        for width in widths:
            state[f"features.{number}.weight"] = torch.randn(width, before, 3, 3) / (4.5 * before) ** 0.5
            state[f"features.{number}.bias"] = torch.zeros(width)
            number, before = number + 2, width
    assert [k for k in state if k.endswith("weight")][2] == "features.5.weight"  # as torchvision numbers them
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pt")
    distance = vgg16(tmp_path / "vgg.pt")
    small, other = waves[..., :32, :32], waves[..., 32:64, :32]
    scaled = (small.expand(-1, 3, -1, -1) - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / (
        torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    )
    first = F.relu(F.conv2d(scaled, state["features.0.weight"], padding=1))
    first = F.relu(F.conv2d(first, state["features.2.weight"], padding=1))
    assert torch.allclose(distance.features(small)[0], F.normalize(first, dim=1), atol=1e-5)
    plain = distance(small, other)
    assert plain > 0
    # With LPIPS's channel weights in the file those count: here nothing but the last level's.
    for level, widths in enumerate(VGG16):
        state[f"lin{level}.model.1.weight"] = torch.full((1, widths[-1], 1, 1), float(level == 4))
    torch.save(state, tmp_path / "lpips.pt")
    assert 0 < vgg16(tmp_path / "lpips.pt")(small, other) < plain
    del state["features.28.weight"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(TrainingError, match=r"no features\.28 of VGG16"):
        vgg16(tmp_path / "cut.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(TrainingError, match="is no state dict"):
        vgg16(tmp_path / "text.pt")


def test_the_adversary_learns_what_is_real_and_teaches_the_image_alone() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(16)
    optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        real = torch.randn(4, 1, 48, 48)
        made = 3 * F.avg_pool2d(real, 5, 1, 2)
        loss = told_apart(discriminator, real, made)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.1 < losses[0]
    optimiser.zero_grad()
    image = (3 * F.avg_pool2d(torch.randn(2, 1, 48, 48), 5, 1, 2)).requires_grad_()
    before = fooled(discriminator, image)
    before.backward()
    assert all(p.grad is None for p in discriminator.parameters())
    downhill = image.grad / image.grad.square().mean().sqrt()
    assert fooled(discriminator, image.detach() - 1e-2 * downhill) < before
    # What it says of an image does not depend on the others.
    with torch.no_grad():
        alone, among = discriminator(image[:1]), discriminator(image)[:1]
    assert torch.allclose(alone, among, atol=1e-5)


def test_both_bone_suppression_ratios() -> None:
    """The authors' as computed by cal_BSR of BS-LDM's metrics.py (44a7246) on these arrays."""
    soft = np.random.default_rng(0).random((32, 32))
    bone = np.zeros((32, 32))
    bone[8:12] = 0.3
    for ratio, half in ((bone_suppression_ratio, 0.75), (published_bone_suppression_ratio, 0.97265625)):
        assert ratio(soft, soft + bone, soft) == pytest.approx(1)
        assert ratio(soft + bone / 2, soft + bone, soft) == pytest.approx(half), ratio.__name__
    assert bone_suppression_ratio(soft + bone, soft + bone, soft) == pytest.approx(0)
    # Theirs counts what is darker than the truth once the means are equal: for doing nothing that is little.
    assert published_bone_suppression_ratio(soft + bone, soft + bone, soft) == pytest.approx(0.890625)
