"""The models that come with the node, on phantoms whose truth is known and on dual-energy pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pacs_node.conditions import Conditions
from pacs_node.infer import Catalog, Settings, load
from pacs_node.phantom import Phantom, PhantomImages
from pacs_node.tasks import Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def models() -> dict:
    """The default model of each task, loaded once."""
    catalog = Catalog()
    return {task: load(catalog.card(task), Settings()) for task in Task}


@pytest.fixture(scope="session")
def patient() -> PhantomImages:
    return Phantom(seed=7).render(512)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(image - truth).mean()))


def test_bone_suppression_takes_bone_from_a_phantom(models: dict, patient: PhantomImages) -> None:
    result = models[Task.BONE_SUPPRESSION](patient.radiograph, Conditions(), 0)
    ribs = patient.rib_mask & patient.lung_mask
    between = patient.lung_mask & ~patient.rib_mask
    assert result.bone[ribs].mean() > 1.2 * result.bone[between].mean()
    lungs = patient.lung_mask
    before = psnr(patient.radiograph[lungs], patient.soft_tissue[lungs])
    assert psnr(result.image[lungs], patient.soft_tissue[lungs]) > before
    assert (result.image <= patient.radiograph + 1e-6).all()


@pytest.mark.parametrize("name", ["JPCLN127.jpg", "JPCLN131.jpg", "JPCNN009.jpg"])
def test_bone_suppression_gains_on_pairs_that_were_left_out(models: dict, data_dir: Path, name: str) -> None:
    radiograph, truth = (
        cv2.imread(str(data_dir / "jsrt_bse" / part / name), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        for part in ("cxr", "soft_tissue")
    )
    result = models[Task.BONE_SUPPRESSION](radiograph, Conditions(), 0)
    assert psnr(result.image, truth) > psnr(radiograph, truth) + 1


def test_restoration_cleans_a_noisy_phantom(models: dict, patient: PhantomImages) -> None:
    noise = np.random.default_rng(0).normal(0, 0.04, patient.radiograph.shape)
    poor = np.clip(cv2.GaussianBlur(patient.radiograph, (0, 0), 1.0) + noise, 0, 1).astype(np.float32)
    result = models[Task.RESTORATION](poor, Conditions(), 0)
    assert psnr(result.image, patient.radiograph) > psnr(poor, patient.radiograph) + 1


def test_anomaly_scores_an_opacity_higher(models: dict, patient: PhantomImages) -> None:
    """A consolidation as bright as the heart in one lung, on the otherwise same phantom."""
    y, x = np.argwhere(patient.lung_mask).mean(axis=0)
    rows, columns = np.mgrid[0:512, 0:512]
    opacity = 0.35 * np.exp(-(((rows - y) / 70) ** 2 + ((columns - x * 0.6) / 50) ** 2)) * patient.lung_mask
    ill = np.clip(patient.radiograph + opacity, 0, 1).astype(np.float32)
    conditions = Conditions(55, "M", "PA")
    well, found = (models[Task.ANOMALY](i, conditions, 0).findings[0] for i in (patient.radiograph, ill))
    assert np.isfinite([well.score, found.score]).all()
    assert found.score > well.score
    assert found.heatmap.shape == (512, 512)
