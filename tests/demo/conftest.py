"""An outcome for the page without a run: real DICOM results, made of the phantom's truth, not by models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset

from pacs_node.demo.outcome import Bar, ImageOutcome, NotAnalysed, Outcome
from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import derived_image
from pacs_node.dicom.files import encode
from pacs_node.dicom.heatmap import heatmap_image
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.infer.results import Finding
from pacs_node.phantom import Phantom
from pacs_node.phantom.dicom import study
from pacs_node.pipeline.reporting import Analysed, study_report_of
from pacs_node.tasks import Task

DIGEST = "sha256:" + "5" * 64
SIZE = 256


def _store(folder: Path, outcome: Outcome, ds: Dataset) -> None:
    path = folder / f"{len(outcome.received) + 1}.dcm"
    path.write_bytes(encode(ds))
    outcome.received[str(ds.SOPInstanceUID)] = path


def _done(task: Task, ds: Dataset, parameters: dict[str, Any], **more: object) -> dict[str, Any]:
    return {
        "task": task.value,
        "status": "done",
        "file": f"{task}.dcm",
        "model": {"name": f"{task}-test", "version": "1.2.3", "digest": DIGEST},
        "qualification": "RESEARCH",
        "sop_class_uid": str(ds.SOPClassUID),
        "sop_instance_uid": str(ds.SOPInstanceUID),
        "series_instance_uid": str(ds.SeriesInstanceUID),
        "parameters": parameters,
        "seconds": 2.5,
        **more,
    }


def make_outcome(folder: Path, size: int = SIZE) -> Outcome:
    """Two images with all results and a report, as the archive would have received them."""
    outcome = Outcome(True, "2026-11-22T06:00:00+00:00", "DCMTK dcmsend 3.6.7", 12.0)
    analysed = []
    for number, ds in enumerate(study(1, rows=size, columns=size), 1):
        truth = Phantom(1 + 1000 * (number - 1), nodules=2 - number).render(size)
        radiograph = read_radiograph(ds, 10**8)
        image = ImageOutcome(number, f"{number}.dcm", str(ds.SOPInstanceUID))
        _store(folder, outcome, ds)
        diffusion = {"sampler": "ddim", "steps": 20, "seed": 7, "provider": "CPUExecutionProvider"}
        shown = {
            Task.BONE_SUPPRESSION: truth.soft_tissue,
            Task.RESTORATION: cv2.GaussianBlur(truth.radiograph, (0, 0), 1.0),
        }
        for task, pixels in shown.items():
            how = Derivation(task, f"{task}-test", "1.2.3", DIGEST, diffusion)
            result = derived_image(ds, radiograph, pixels, how)
            image.tasks[task] = _done(task, result, diffusion)
            _store(folder, outcome, result)
        heat = cv2.GaussianBlur(truth.nodule_mask.astype(np.float32), (0, 0), size / 40)
        heat = heat / max(float(heat.max()), 1e-6)
        score = (1.9, 0.6)[number - 1]
        decision = "abnormal" if score >= 1.2 else "normal"
        finding = Finding("Departure from a normal chest", None, score, 1.2, decision, heat)
        how = Derivation(Task.ANOMALY, "anomaly-test", "1.2.3", DIGEST, {"threshold": 1.2})
        result = heatmap_image(ds, radiograph, heat, [finding], how)
        said = {"name": finding.name, "code": None, "score": score, "threshold": 1.2, "decision": decision}
        image.tasks[Task.ANOMALY] = _done(Task.ANOMALY, result, {}, findings=[said])
        _store(folder, outcome, result)
        begin = 0.3 * number
        image.bars = [Bar("receive", begin - 0.3, begin), Bar("route", begin, begin + 0.02)]
        at = 0.6 + 5.0 * (number - 1)
        for task, took in zip(Task, (3.0, 1.5, 0.4), strict=True):
            image.bars.append(Bar(task.value, at, at + took))
            at += took
            image.bars.append(Bar(f"deliver {task}", at + 0.05, at + 0.1))
        outcome.images.append(image)
        analysed.append(Analysed(ds, list(image.tasks.values())))
    report = study_report_of(analysed)
    assert report is not None
    _store(folder, outcome, report)
    outcome.study_bars = [Bar("report", 11.5, 11.9), Bar("deliver report", 11.92, 12.0)]
    return outcome


@pytest.fixture(scope="session")
def outcome_maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Outcome]:
    """Gives a fresh outcome each time; the files behind it are made once and not to be changed."""
    folder = tmp_path_factory.mktemp("archive")
    first = make_outcome(folder)

    def fresh() -> Outcome:
        images = [
            ImageOutcome(i.number, i.file, i.sop_instance_uid, dict(i.tasks), bars=list(i.bars))
            for i in first.images
        ]
        return Outcome(
            True, first.started, first.sender, first.seconds, images,
            study_bars=list(first.study_bars), received=dict(first.received),
        )  # fmt: skip

    return fresh


@pytest.fixture
def refusal() -> NotAnalysed:
    """A refusal whose text is hostile."""
    return NotAnalysed("<script>alert('reason')</script>", '"><img src=x onerror=alert(2)>')
