"""The anomaly recipe in miniature: synthetic chests, a tiny extractor, the Gaussian, ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side is not installed (make test-all)")
pytestmark = pytest.mark.torch

import torch  # noqa: E402

from export.anomaly import data, synthesis  # noqa: E402
from export.anomaly.evaluate import bootstrap, figures_of, pr_auc, roc_auc  # noqa: E402
from export.anomaly.gaussian import AnomalyModel, Settings, outputs_of  # noqa: E402
from export.anomaly.network import Extractor, Shape  # noqa: E402
from export.anomaly.train import Normals, make_trainer, step  # noqa: E402
from export.shipping import export_graph, parity  # noqa: E402

TINY = Shape(size=64, widths=(8, 8, 12, 16, 16), blocks=(1, 1, 1, 1))


def chest(rng: np.random.Generator, view: float) -> np.ndarray:
    """A crude chest, 64 x 64: two dark lungs, smaller where the view is AP (-1)."""
    y, x = np.mgrid[0:64, 0:64] / 64
    image = np.full((64, 64), 0.75)
    for centre in (0.29, 0.71):
        radius = 0.30 + 0.03 * view + rng.normal(0, 0.01)
        image[((x - centre) / 0.16) ** 2 + ((y - 0.47) / radius) ** 2 < 1] = 0.3
    return np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def normals() -> Normals:
    """48 crude chests of both views."""
    rng = np.random.default_rng(0)
    views = np.where(np.arange(48) % 2, 1.0, -1.0)
    images = np.stack([chest(rng, v) for v in views])
    lungs = np.stack([data.lung_mask(i) for i in images])
    conditions = np.array(
        [
            data.condition_vector(float(rng.uniform(20, 80)), rng.choice(["M", "F"]), "PA" if v > 0 else "AP")
            for v in views
        ],
        np.float32,
    )
    return Normals(
        np.round(images * 255).astype(np.uint8), np.round(lungs * 255).astype(np.uint8), conditions
    )


@pytest.fixture(scope="module")
def fitted(normals: Normals) -> AnomalyModel:
    """A model fitted on them; the extractor is as initialised."""
    torch.manual_seed(0)
    model = AnomalyModel(Extractor(TINY), Settings(features=6)).eval()
    images = torch.from_numpy(normals.images).float()[:, None] / 127.5 - 1
    model.fit(outputs_of(model.extractor, images), torch.from_numpy(normals.conditions))
    return model


def test_a_patient_is_in_one_part_only(data_dir: Path) -> None:
    records = data.read_records(data_dir)
    parts = {p: {r.patient for r in data.select(records, p)} for p in ("train", "validation", "test")}
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    assert sum(len(data.select(records, p)) for p in parts) == len(records)
    assert all(r.normal for r in data.select(records, "train", normal=True))


def test_the_split_never_changes() -> None:
    assert [data.part_of(p) for p in ("1", "2", "3", "1281")] == ["test", "test", "train", "train"]
    shares = [data.part_of(str(p)) for p in range(4000)]
    assert abs(shares.count("test") / 4000 - data.TEST_SHARE) < 0.03


def test_lung_mask_covers_the_dark_fields_only(normals: Normals) -> None:
    image = normals.images[1] / 255
    mask = normals.lungs[1] / 255
    assert image[mask > 0.9].mean() < 0.4
    assert mask[:5].max() < 0.1
    assert 0.1 < mask.mean() < 0.5


@pytest.mark.parametrize("name", list(synthesis.FINDINGS))
def test_synthetic_findings_change_the_lungs_and_little_else(name: str, normals: Normals) -> None:
    changed = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image, lungs = normals.images[1].astype(np.float32) / 255, normals.lungs[1].astype(np.float32) / 255
        result = synthesis.FINDINGS[name][0](image, lungs, rng)
        assert result.shape == image.shape
        change = np.abs(result - image)
        changed += change[lungs > 0.5].max() > 0.01
        assert change[:4].max() < 0.05
    assert changed >= 6


def test_training_reduces_the_loss_and_resumes_exactly(tmp_path: Path, normals: Normals) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(TINY)
    losses = [step(trainer, normals, 8)["loss"] for _ in range(20)]
    trainer.save(tmp_path / "a.pt")
    losses += [step(trainer, normals, 8)["loss"] for _ in range(20)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])

    resumed = make_trainer(TINY, seed=0)
    resumed.load(tmp_path / "a.pt")
    again = [step(resumed, normals, 8)["loss"] for _ in range(20)]
    assert again == losses[20:]
    for one, other in zip(trainer.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_scores_of_normals_are_standard(fitted: AnomalyModel, normals: Normals) -> None:
    images = torch.from_numpy(normals.images).float()[:, None] / 127.5 - 1
    with torch.no_grad():
        score, heatmap = fitted(images, torch.from_numpy(normals.conditions))
    assert abs(float(score.mean())) < 0.1
    assert 0.7 < float(score.std()) < 1.3
    assert heatmap.shape == (48, 16, 16)
    assert float(heatmap.min()) >= 0


def test_view_changes_what_is_expected(fitted: AnomalyModel, normals: Normals) -> None:
    """Told the wrong view, a normal chest lies farther from what is expected."""
    images = torch.from_numpy(normals.images).float()[:, None] / 127.5 - 1
    right = torch.from_numpy(normals.conditions)
    wrong = right * torch.tensor([1, 1, 1, -1, 1])
    assert not torch.allclose(fitted.place_mean[3], torch.zeros_like(fitted.place_mean[3]), atol=1e-4)
    with torch.no_grad():
        distance = [
            fitted.deviation(fitted.project(fitted.extractor(images)), design).mean()
            for design in (_design(right), _design(wrong))
        ]
    assert distance[1] > distance[0] + 0.05


def _design(conditions: torch.Tensor) -> torch.Tensor:
    from export.anomaly.gaussian import design

    return design(conditions)


def test_unknown_conditions_are_the_middle(fitted: AnomalyModel) -> None:
    unknown = torch.tensor([data.condition_vector(None, None, None)])
    assert _design(unknown).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_exposure_does_not_change_the_score(fitted: AnomalyModel, normals: Normals) -> None:
    """Brightness and contrast are taken out inside the graph."""
    images = torch.from_numpy(normals.images[:4]).float()[:, None] / 127.5 - 1
    conditions = torch.from_numpy(normals.conditions[:4])
    with torch.no_grad():
        plain = fitted(images, conditions)[0]
        other = fitted(images * 0.7 - 0.1, conditions)[0]
    assert torch.allclose(plain, other, atol=0.6)


def test_onnx_is_the_torch_model(tmp_path: Path, fitted: AnomalyModel, normals: Normals) -> None:
    inputs = {
        "image": torch.from_numpy(normals.images[:3]).float()[:, None] / 127.5 - 1,
        "conditions": torch.from_numpy(normals.conditions[:3]),
    }
    path = tmp_path / "model.onnx"
    export_graph(fitted, path, inputs, ["score", "heatmap"], half=False)
    assert max(parity(fitted, path, inputs, tolerance=1e-4)) < 1e-4
    full = path.stat().st_size
    export_graph(fitted, path, inputs, ["score", "heatmap"])
    assert path.stat().st_size < 0.75 * full
    assert max(parity(fitted, path, inputs, tolerance=2e-2)) > 0
    with torch.no_grad():
        fitted.extractor.change.bias.add_(1)
    with pytest.raises(ValueError, match="differs from torch"):
        parity(fitted, path, inputs, tolerance=2e-2)
    with torch.no_grad():
        fitted.extractor.change.bias.sub_(1)


def test_measures_on_known_scores() -> None:
    normal, abnormal = np.array([0.0, 1, 2, 3]), np.array([2.0, 4])
    assert roc_auc(normal, abnormal) == pytest.approx((2.5 + 4) / 8)
    assert roc_auc(normal, normal) == pytest.approx(0.5)
    assert pr_auc(np.array([0.0, 2]), np.array([1.0, 3])) == pytest.approx((1 + 2 / 3) / 2)


def test_bootstrap_draws_patients_not_images() -> None:
    """A patient's many radiographs count as one draw: the interval is wider than with all apart."""
    rng = np.random.default_rng(1)
    base = np.repeat(rng.normal(size=40), 10)
    normal = np.repeat(np.arange(40) % 2 == 0, 10)
    scores = base + 0.8 * ~normal
    together = bootstrap(roc_auc, scores, normal, np.repeat(np.arange(40), 10).astype(str), draws=200)
    apart = bootstrap(roc_auc, scores, normal, np.arange(400).astype(str), draws=200)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_figures_count_what_the_threshold_does() -> None:
    records = [
        data.Record(Path("a"), str(i), 50, "M", "PA", "No Finding" if i < 4 else "Pneumonia")
        for i in range(8)
    ]
    found = figures_of(np.array([0, 0, 0, 2, 0, 2, 2, 2.0]), records, threshold=1.0)
    assert (found["no_finding"], found["pneumonia"], found["patients"]) == (4, 4, 8)
    assert found["called_abnormal_of_no_finding"] == 0.25
    assert found["called_abnormal_of_pneumonia"] == 0.75
    assert found["roc_auc_95"][0] <= found["roc_auc"] <= found["roc_auc_95"][1]
