"""The study's report and the heatmap: what they say, in full, and that validators and readers agree."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage
from radiographs import CR, DX, DX_RAW, MAX_PIXELS, NAMES, SC, chest, radiograph, write
from validators import entity_errors, errors

from pacs_node.dicom import codes, identity, uids
from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import derived_image
from pacs_node.dicom.files import encode, open_dicom, read_header
from pacs_node.dicom.heatmap import MAX_SIDE, heatmap_image
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.dicom.report import (
    Evaluation,
    Reference,
    SourceResult,
    TaskOutcome,
    report_text,
    report_uid,
    study_report,
)
from pacs_node.dicom.selfcheck import check
from pacs_node.errors import OutputError
from pacs_node.tasks import Task

BONES = Derivation(
    Task.BONE_SUPPRESSION,
    "ribless",
    "1.2",
    "sha256:" + "ab" * 32,
    {"sampler": "ddim", "steps": 20, "seed": 7},
)
ODD = Derivation(Task.ANOMALY, "odd", "3.1", "sha256:" + "ef" * 32, {"provider": "CPUExecutionProvider"})
HIGH = Evaluation("abnormality", 0.8125, 0.5, "abnormal")
LOW = Evaluation("opacity", 0.125, 0.5, "normal")


def bump(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / np.array(shape).reshape(2, 1, 1)
    return np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.01).astype(np.float32)


def results(
    source: Dataset, findings: Sequence[Evaluation] = (HIGH, LOW)
) -> tuple[SourceResult, list[Dataset]]:
    image = read_radiograph(source, MAX_PIXELS)
    bones = derived_image(source, image, image.image * np.float32(0.9), BONES)
    heatmap = heatmap_image(source, image, bump(image.image.shape), findings, ODD)
    outcomes = [
        TaskOutcome(Task.BONE_SUPPRESSION, "done", BONES, output=Reference.of(bones)),
        TaskOutcome(Task.RESTORATION, "failed", reason="the model is missing"),
        TaskOutcome(Task.ANOMALY, "done", ODD, findings, Reference.of(heatmap)),
    ]
    return SourceResult(source, outcomes, warnings=["the header has no window"]), [bones, heatmap]


def walk(ds: Dataset) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence") or []:
        yield item
        yield from walk(item)


def named(ds: Dataset, value: str) -> list[Dataset]:
    """The content items, however deep, whose concept has the code ``value``."""
    return [
        i
        for i in walk(ds)
        if i.get("ConceptNameCodeSequence") and i.ConceptNameCodeSequence[0].CodeValue == value
    ]


def coded(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeValue)


@pytest.mark.parametrize("report_class", [Comprehensive3DSRStorage, ComprehensiveSRStorage])
@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW, SC], ids=["CR", "DX", "DX for processing", "SC"])
@pytest.mark.parametrize("charset", [None, *NAMES])
def test_validators_and_dcmtk_read_the_report(
    sop_class: str, charset: str | None, report_class: str, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    source = open_dicom(write(radiograph(sop_class, charset=charset), tmp_path / "source"), 1 << 30)
    known = errors(require_tool, tmp_path / "source")
    result, _ = results(source)
    path = tmp_path / "report"
    path.write_bytes(encode(study_report([result], sop_class_uid=report_class)))
    assert errors(require_tool, path) <= known
    # DCMTK built with glibc's iconv converts no ISO 2022 IR 87; it reads such a report unconverted.
    options = [] if charset == "japanese" else ["+U8"]
    command = [require_tool("dsrdump"), *options, path]
    shown = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=60)
    assert "Error" not in shown.stderr, shown.stderr
    assert "Abnormality score" in shown.stdout
    name = dcmread(path).PatientName
    assert name == dcmread(tmp_path / "source").PatientName


@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW, SC], ids=["CR", "DX", "DX for processing", "SC"])
def test_the_objects_of_a_study_agree(
    sop_class: str, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    source = radiograph(sop_class)
    paths = [write(source, tmp_path / "source")]
    result, made = results(source)
    for number, ds in enumerate([*made, study_report([result])]):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(encode(ds))
        assert errors(require_tool, paths[-1]) <= errors(require_tool, paths[0])
    assert entity_errors(require_tool, paths) == []


def test_computed_radiographs_that_lack_what_highdicom_asks_for() -> None:
    source = radiograph(PatientOrientation=None, PixelSpacing=None)
    report = study_report([results(source)[0]])
    assert named(report, codes.ROWS.value)
    assert not named(report, codes.ORIENTATION_ROW.value)
    assert not named(report, codes.HORIZONTAL_SPACING.value)
    source = radiograph(PatientOrientation=["L", "F"])
    report = study_report([results(source)[0]])
    assert named(report, codes.ORIENTATION_ROW.value)[0].TextValue == "L"
    assert (
        float(named(report, codes.HORIZONTAL_SPACING.value)[0].MeasuredValueSequence[0].NumericValue) == 0.8
    )


def test_every_finding_is_stated_with_score_threshold_and_algorithm() -> None:
    source = radiograph()
    report = study_report([results(source)[0]])
    groups = named(report, "125007")
    assert len(groups) == 2
    for group, finding in zip(groups, (HIGH, LOW), strict=True):
        (score,) = [i for i in group.ContentSequence if i.ValueType == "NUM"]
        concept = score.ConceptNameCodeSequence[0]
        assert concept.CodeMeaning == f"{finding.name.capitalize()} score"
        assert concept.CodingSchemeDesignator == codes.SCHEME
        assert score.MeasuredValueSequence[0].FloatingPointValue == finding.score
        assert "NumericValueQualifierCodeSequence" not in score
        normal = codes.NORMAL if finding.decision == "normal" else codes.ABNORMAL
        assert coded(named(group, codes.NORMALITY.value)[0]) == normal.value
        assert [i.TextValue for i in named(group, "111001")] == ["odd"]
        assert [i.TextValue for i in named(group, "111003")] == ["3.1"]
        parameters = {i.TextValue for i in named(group, "111002")}
        assert {
            "threshold = 0.5",
            "provider = CPUExecutionProvider",
            f"digest = {ODD.model_digest}",
        } <= parameters
        assert coded(named(group, "111000")[0]) == "123110"
        assert named(group, "122405")
        outline = next(i for i in walk(group) if i.ValueType == "SCOORD")
        assert outline.GraphicType == "POLYLINE"
        assert list(outline.GraphicData) == [0, 0, 232, 0, 232, 256, 0, 256, 0, 0]
        (image,) = named(group, "121112")
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        tracking = uids.tracking(str(source.SOPInstanceUID), "anomaly", ODD.model_digest, finding.name)
        assert tracking == named(group, "112040")[0].UID
    assert not named(report, "122157"), "a score is no probability"
    assert not named(report, "111047")


@pytest.mark.parametrize(("decision", "code"), [("present", codes.PRESENT), ("absent", codes.ABSENT)])
def test_named_findings_are_present_or_absent(decision: str, code: Any) -> None:
    class Coded:
        value, scheme, meaning = "36118008", "SCT", "Pneumothorax"

    finding = Evaluation("pneumothorax", 0.9, 0.5, decision, Coded())
    (group,) = named(study_report([results(radiograph(), [finding])[0]]), "125007")
    assert coded(named(group, codes.PRESENCE.value)[0]) == code.value
    assert coded(named(group, codes.FINDING.value)[0]) == "36118008"


@pytest.mark.parametrize(
    ("outcome", "qualifier"),
    [
        (TaskOutcome(Task.ANOMALY, "failed", ODD, reason="out of memory"), "114006"),
        (TaskOutcome(Task.ANOMALY, "failed", reason="no such model"), "114006"),
        (TaskOutcome(Task.ANOMALY, "not_attempted", reason="a child"), "114007"),
        (TaskOutcome(Task.ANOMALY, "done", ODD, [replace(HIGH, score=float("nan"))]), "114006"),
    ],
)
def test_what_has_no_result_is_not_negative(
    outcome: TaskOutcome, qualifier: str, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    report = study_report([SourceResult(radiograph(), [outcome])])
    (group,) = named(report, "125007")
    (score,) = [i for i in group.ContentSequence if i.ValueType == "NUM"]
    assert len(score.MeasuredValueSequence) == 0
    assert score.NumericValueQualifierCodeSequence[0].CodeValue == qualifier
    assert coded(named(group, codes.NORMALITY.value)[0]) == codes.UNDETERMINED.value
    assert any(i.ValueType == "SCOORD" for i in walk(group)), "viewers want one in every group"
    text = report_text(report)
    assert "no value" in text
    if outcome.reason:
        assert outcome.reason in text
        assert report.CompletionFlag == "PARTIAL"
        assert "says nothing about the patient" in text
    path = tmp_path / "report"
    path.write_bytes(encode(report))
    assert errors(require_tool, path) == set()


def test_a_refused_image_is_listed_with_its_reason() -> None:
    good = results(radiograph())[0]
    side = SourceResult(radiograph(SOPInstanceUID="1.2.3.4", InstanceNumber=4), refusal="a lateral view")
    report = study_report([side, good])
    (refused,) = named(report, codes.ANALYSIS.value)
    assert coded(refused) == codes.NOT_ATTEMPTED.value
    assert refused.ContentSequence[0].TextValue == "a lateral view"
    assert "Image 2 was not analysed: a lateral view." in report_text(report)
    only = study_report([side])
    assert not named(only, codes.IMAGING_MEASUREMENTS.value)
    assert "a lateral view" in report_text(only)


def test_flags_and_references() -> None:
    result, made = results(radiograph())
    report = study_report([result])
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.CompletionFlag == "PARTIAL"
    assert report.ContentQualification == "RESEARCH"
    assert (report.Manufacturer, report.ManufacturerModelName) == (identity.MANUFACTURER, identity.MODEL_NAME)
    assert identity.is_own_result(report)
    assert "not for diagnosis" in report.SeriesDescription
    assert "not for diagnosis" in named(report, codes.CONCLUSION.value)[0].TextValue
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert coded(named(report, codes.PROCEDURE_REPORTED.value)[0]) == codes.CHEST_RADIOGRAPHY.value
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence
    }
    assert listed == {str(ds.SOPInstanceUID) for ds in [result.header, *made]}
    assert report.ReferencedRequestSequence[0].AccessionNumber == "A1"
    done = study_report([SourceResult(result.header, [o for o in result.outcomes if o.status == "done"])])
    assert done.CompletionFlag == "COMPLETE"


def test_made_again_it_names_its_predecessor_and_the_same_results_are_the_same_report(tmp_path: Path) -> None:
    first = results(radiograph())[0]
    report = study_report([first], created=datetime(2026, 1, 2, 3, 4, 5))  # noqa: DTZ001  a local time will do
    assert (report.ContentDate, report.ContentTime) == ("20260102", "030405")
    path = tmp_path / "report"
    path.write_bytes(encode(report))
    again = study_report([first], created=datetime(2026, 1, 2, 3, 4, 5))  # noqa: DTZ001
    assert encode(again) == path.read_bytes()
    assert report.SOPInstanceUID == report_uid([first])
    late = results(radiograph(SOPInstanceUID="1.2.3.4", InstanceNumber=4))[0]
    second = study_report([late, first], read_header(path))
    assert second.SOPInstanceUID == report_uid([first, late]) != report.SOPInstanceUID
    assert second.SeriesInstanceUID == report.SeriesInstanceUID
    assert second.InstanceNumber == 2
    predecessor = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert predecessor.SeriesInstanceUID == report.SeriesInstanceUID
    assert predecessor.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == report.SOPInstanceUID
    assert len(named(second, "125007")) == 4
    changed = replace(first, outcomes=[replace(first.outcomes[2], findings=[replace(HIGH, score=0.9)])])
    assert len({report_uid([first]), report_uid([changed]), report_uid([first, late])}) == 3


def test_one_study_only() -> None:
    with pytest.raises(OutputError, match="at least one"):
        study_report([])
    with pytest.raises(OutputError, match="several"):
        study_report([SourceResult(radiograph()), SourceResult(radiograph(StudyInstanceUID="1.2"))])


def test_without_any_date_the_report_has_the_present_one() -> None:
    source = radiograph(
        StudyDate=None,
        StudyTime=None,
        ContentDate=None,
        ContentTime=None,
        AcquisitionDate=None,
        AcquisitionTime=None,
    )
    assert len(study_report([SourceResult(source, refusal="x")]).ContentDate) == 8


def test_text_of_others_is_made_ascii() -> None:
    """Reasons and names of models go with whatever Specific Character Set the patient's name has."""
    outcome = TaskOutcome(Task.ANOMALY, "failed", replace(ODD, model_name="modèle\\ñ"), reason="größer\nals")
    report = study_report([SourceResult(radiograph(charset="japanese"), [outcome])])
    assert "gr??er als" in report_text(report)
    assert all(i.TextValue.isascii() for i in walk(report) if i.ValueType == "TEXT")


def test_selfcheck_finds_a_reference_that_is_not_in_the_evidence() -> None:
    report = study_report([results(radiograph())[0]])
    report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.pop()
    with pytest.raises(OutputError, match="evidence"):
        check(report)


def test_report_text_reads_any_report() -> None:
    text = report_text(study_report([results(radiograph())[0]]))
    lines = text.splitlines()
    assert lines[0] == "Imaging Measurement Report"
    assert lines[1] == "(partial, unverified, research)"
    assert "    Abnormality score: 0.8125" in lines
    assert "    Normality: Abnormal" in lines
    assert "  Image restoration by AI: Measurement failure" in lines
    assert "Test^Phantom" not in text
    assert report_text(Dataset()).startswith("Structured Report")


# -- the heatmap ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW, SC], ids=["CR", "DX", "DX for processing", "SC"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("charset", [None, "japanese"])
def test_heatmap(
    sop_class: str, photometric: str, charset: str | None, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    path = write(radiograph(sop_class, photometric=photometric, charset=charset), tmp_path / "source")
    source = open_dicom(path, 1 << 30)
    image = read_radiograph(source, MAX_PIXELS)
    ds = heatmap_image(source, image, bump(image.image.shape), [HIGH, LOW], ODD)
    target = tmp_path / "heatmap"
    target.write_bytes(encode(ds))
    assert errors(require_tool, target) <= errors(require_tool, path)
    assert ds.SOPClassUID == SecondaryCaptureImageStorage
    assert (ds.Rows, ds.Columns) == (256, 232)
    assert (ds.BurnedInAnnotation, ds.ConversionType, ds.PhotometricInterpretation) == ("YES", "WSD", "RGB")
    assert [float(v) for v in ds.PixelSpacing] == [0.8, 0.8]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert ds.SourceImageSequence[0].SpatialLocationsPreserved == "YES"
    assert ds.DerivationCodeSequence[0].CodeValue == "ANOMALY_HEATMAP"
    picture = dcmread(target).pixel_array.astype(int)
    grey = np.rint(image.image * 255)
    untouched = (bump(image.image.shape) < 0.01) & (np.mgrid[0:256, 0:232][0] > 90)
    assert np.abs(picture[untouched] - grey[untouched][:, None]).max() <= 1
    hottest = picture[154, 70]
    assert hottest[0] > hottest[2] + 40, "red where the heatmap is high"
    assert (picture[:40, :150].max(axis=(0, 1)) >= 200).all(), "the legend is written at the top left"


def test_a_large_image_is_reduced_with_its_spacing() -> None:
    source = radiograph(image=np.tile(chest(), (9, 9)), bits=8)
    image = read_radiograph(source, 10_000_000)
    ds = heatmap_image(source, image, bump(image.image.shape), [HIGH], ODD)
    assert max(ds.Rows, ds.Columns) == MAX_SIDE
    assert ds.Columns == round(9 * 232 * MAX_SIDE / (9 * 256))
    assert float(ds.PixelSpacing[0]) == pytest.approx(0.8 * 9 * 256 / MAX_SIDE)
    assert ds.SourceImageSequence[0].SpatialLocationsPreserved == "NO"


def test_heatmap_legend_says_what_it_must_and_nothing_of_the_patient() -> None:
    from pacs_node.dicom.heatmap import legend

    text = "\n".join(legend([HIGH, LOW], ODD))
    for word in (
        "RESEARCH",
        "not for diagnosis",
        "abnormality",
        "0.812",
        "threshold 0.500",
        "normal",
        "odd 3.1",
    ):
        assert word in text


@pytest.mark.parametrize("heatmap", [np.zeros((2, 2), np.float32), np.full((256, 232), np.nan, np.float32)])
def test_a_heatmap_that_does_not_fit_is_an_error(heatmap: np.ndarray) -> None:
    source = radiograph()
    with pytest.raises(OutputError):
        heatmap_image(source, read_radiograph(source, MAX_PIXELS), heatmap, [HIGH], ODD)


# -- real radiographs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_radiographs(data_dir: Path, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    """Every output of every chest file: no error of dciodvfy or dcentvfy that its source does not have."""
    paths = sorted(p for p in (data_dir / "dicom").glob("*.dcm") if not p.name.startswith("NEG"))
    assert paths
    for path in paths:
        source = open_dicom(path, 1 << 30)
        image = read_radiograph(source, 100_000_000)
        np.testing.assert_array_equal(image.to_stored(image.image), image.stored.values)
        bones = derived_image(source, image, image.image * np.float32(0.9), BONES)
        heatmap = heatmap_image(source, image, bump(image.image.shape), [HIGH], ODD)
        outcomes = [
            TaskOutcome(Task.BONE_SUPPRESSION, "done", BONES, output=Reference.of(bones)),
            TaskOutcome(Task.ANOMALY, "done", ODD, [HIGH], Reference.of(heatmap)),
        ]
        report = study_report([SourceResult(read_header(path), outcomes, warnings=image.warnings)])
        known = errors(require_tool, path)
        made = []
        for name, ds in (("bones", bones), ("heatmap", heatmap), ("report", report)):
            made.append(tmp_path / name)
            made[-1].write_bytes(encode(ds))
            assert errors(require_tool, made[-1]) <= known, (path.name, name)
        assert entity_errors(require_tool, [path, *made]) == [], path.name
        shown = read_radiograph(dcmread(tmp_path / "bones"), 100_000_000)
        assert np.abs(shown.image - image.image * np.float32(0.9))[image.image < 1].max() < 0.02, path.name


def test_a_false_polarity_tag_among_the_real_ones(data_dir: Path) -> None:
    true, false = (
        read_radiograph(open_dicom(next((data_dir / "dicom").glob(p)), 1 << 30), 100_000_000)
        for p in ("siim_cr_pa_mono2*", "siim_cr_pa_FAKE*")
    )
    np.testing.assert_allclose(false.image, true.image, atol=1e-6)
    assert any("contradict" in w for w in false.warnings)
    assert not any("contradict" in w for w in true.warnings)


def test_codes_fit_their_value_representations() -> None:
    for code in [c for c in vars(codes).values() if isinstance(c, Code)] + [codes.score("x" * 200)]:
        assert 0 < len(code.value) <= 16, code
        assert 0 < len(code.scheme_designator) <= 16, code
        assert 0 < len(code.meaning) <= 64, code


def test_uids_differ_whatever_differs() -> None:
    parts = list(itertools.product(("1.2", "1.3"), ("bone_suppression", "anomaly"), ("a", "b"), ("", "r")))
    made = {uids.instance(*p) for p in parts} | {uids.series(*p[:3]) for p in parts}
    assert len(made) == len(parts) + len(parts) // 2
    assert all(uids.is_uid(uid) and uid.startswith("2.25.") for uid in made)
    assert uids.instance("1.2", "anomaly", "a") == uids.instance("1.2", "anomaly", "a", "")
    assert uids.device("a", "b") == uids.device("b", "a", "a")
