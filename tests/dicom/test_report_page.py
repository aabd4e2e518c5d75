"""The report as pages of text: what they say, that validators take them, and that no patient is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from radiographs import CR, DX, NAMES, SC, radiograph, write
from test_report import HIGH, LOW, results
from validators import entity_errors, errors

from pacs_node.dicom import report_page
from pacs_node.dicom.files import encode, open_dicom
from pacs_node.dicom.identity import is_own_result
from pacs_node.dicom.report import Evaluation, SourceResult, TaskOutcome, study_report
from pacs_node.dicom.report_page import COLUMNS, ROWS, report_pages
from pacs_node.tasks import Task

PATIENT = ("Test", "Phantom", "P1", "19700102", "1970-01-02", "A1")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn."""
    texts: list[str] = []
    text = report_page.ImageDraw.ImageDraw.text

    def noted(self: object, place: object, what: str, **how: object) -> object:
        texts.append(what)
        return text(self, place, what, **how)

    monkeypatch.setattr(report_page.ImageDraw.ImageDraw, "text", noted)
    return texts


@pytest.mark.parametrize("sop_class", [CR, DX, SC], ids=["CR", "DX", "SC"])
@pytest.mark.parametrize("charset", [None, *NAMES])
def test_a_page_is_valid_and_its_patient_is_the_source_s(
    sop_class: str,
    charset: str | None,
    tmp_path: Path,
    require_tool: Callable[[str], str],
    drawn: list[str],
) -> None:
    source = open_dicom(write(radiograph(sop_class, charset=charset), tmp_path / "source"), 1 << 30)
    result, _ = results(source)
    report = study_report([result])
    (page,) = report_pages(report, [result])
    (tmp_path / "page").write_bytes(encode(page))
    (tmp_path / "report").write_bytes(encode(report))
    assert errors(require_tool, tmp_path / "page") == set()
    assert entity_errors(require_tool, [tmp_path / n for n in ("source", "page", "report")]) == []
    again = dcmread(tmp_path / "page")
    assert again.PatientName == dcmread(tmp_path / "source").PatientName
    assert again.SOPClassUID == SecondaryCaptureImageStorage
    assert again.StudyInstanceUID == source.StudyInstanceUID
    assert is_own_result(again)
    assert again.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == report.SOPInstanceUID
    assert again.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    # What is drawn is plain ASCII and never the patient, so no font can show a wrong name.
    shown = "\n".join(drawn)
    assert shown.isascii()
    assert not [value for value in PATIENT if value in shown]


def test_a_page_says_everything_that_was_found(drawn: list[str]) -> None:
    result, _ = results(radiograph(DX))
    (page,) = report_pages(study_report([result]), [result])
    shown = " ".join(drawn)
    assert "AI - research - not for diagnosis" in drawn
    assert "abnormality: ABNORMAL  (score 0.812, threshold 0.500)" in shown
    assert "opacity: NORMAL  (score 0.125, threshold 0.500)" in shown
    assert "AI restoration: FAILED (the model is missing); this says nothing about the patient" in shown
    assert "not verified by a physician" in shown
    assert "Note: the header has no window" in shown
    pixels = np.frombuffer(page.PixelData, np.uint8).reshape(page.Rows, page.Columns)
    assert pixels.shape == (ROWS, COLUMNS)
    assert pixels.max() == 255
    assert pixels.min() == 0
    # Nothing runs out of the page, and there is text to read.
    assert not pixels[:, :40].any()
    assert not pixels[:, -40:].any()
    assert not pixels[-40:].any()
    assert 0.01 < (pixels > 128).mean() < 0.2


def test_the_same_report_has_the_same_pages_and_another_has_others() -> None:
    result, _ = results(radiograph(DX))
    report = study_report([result])
    first, again = report_pages(report, [result]), report_pages(report, [result])
    assert [encode(page) for page in first] == [encode(page) for page in again]
    other_kind = study_report([result], sop_class_uid=ComprehensiveSRStorage)
    changed, _ = results(radiograph(DX), [replace(HIGH, score=0.9), LOW])
    later = study_report([changed], predecessor=report)
    (other,), (next_page,) = report_pages(other_kind, [result]), report_pages(later, [changed])
    assert len({page.SOPInstanceUID for page in (*first, other, next_page)}) == 3
    assert next_page.SeriesInstanceUID == first[0].SeriesInstanceUID
    assert next_page.InstanceNumber > first[0].InstanceNumber


def test_a_refused_image_is_said_to_be_not_analysed(drawn: list[str]) -> None:
    result = SourceResult(radiograph(DX), refusal="the image is no chest")
    report_pages(study_report([result]), [result])
    assert "NOT ANALYSED: the image is no chest" in drawn


def test_a_long_report_takes_several_pages_and_loses_nothing(drawn: list[str]) -> None:
    findings = [Evaluation(f"finding {n}", n / 100, 0.5, "normal") for n in range(60)]
    word = "x" * 400
    outcomes = [TaskOutcome(Task.ANOMALY, "done", None, findings), TaskOutcome(Task.RESTORATION, "failed")]
    result = SourceResult(radiograph(DX), outcomes, warnings=[word, "a word " * 60])
    pages = report_pages(study_report([result]), [result])
    assert len(pages) > 1
    assert len({page.SOPInstanceUID for page in pages}) == len(pages)
    assert len({page.SeriesInstanceUID for page in pages}) == 1
    assert [page.InstanceNumber for page in pages] == list(range(1, len(pages) + 1))
    shown = "\n".join(drawn)
    for n in range(60):
        assert f"finding {n}: NORMAL" in shown
    assert shown.count("x") >= 400
    assert shown.count("AI - research - not for diagnosis") == len(pages)
    assert f"page 1 of {len(pages)}" in shown
    for page in pages:
        pixels = np.frombuffer(page.PixelData, np.uint8).reshape(page.Rows, page.Columns)
        assert not pixels[:, -40:].any()
        assert not pixels[-40:].any()
