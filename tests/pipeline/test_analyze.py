"""Files in, files out: what ``pacs-node analyze`` writes, says and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.config import Config
from pacs_node.errors import Refused
from pacs_node.phantom import Phantom
from pacs_node.pipeline.analysis import open_source
from tests.dicom_objects import write
from tests.pipeline.bad_input import ODD, REFUSED, images
from tests.pipeline.conftest import chest
from tests.pipeline.harness import TASKS, settings

ROOT = Path(__file__).resolve().parents[2]


def analyze(
    folder: Path, *arguments: str | Path, tasks: tuple[str, ...] = (), **infer: Any
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command with the tiny models; its end, and the JSON on stdout."""
    config = folder / "analyze.json"
    config.write_text(json.dumps({"models": settings(folder)["models"], "infer": {"threads": 1, **infer}}))
    chosen = [word for task in tasks for word in ("--task", task)]
    command = [sys.executable, "-m", "pacs_node", "analyze", *map(str, arguments)]
    ended = subprocess.run(
        [*command, "--out", str(folder / "out"), "--config", str(config), "--json", *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended, json.loads(ended.stdout) if ended.stdout else {}


def results_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.dcm")}


def test_an_image_gives_three_results_a_report_and_their_description(tmp_path: Path) -> None:
    source = chest(PatientSex="F", PatientAge="061Y")
    ended, said = analyze(tmp_path, write(tmp_path, source))
    assert ended.returncode == 0
    folder = tmp_path / "out" / source.SOPInstanceUID
    assert {path.name for path in folder.iterdir()} == {f"{task}.dcm" for task in TASKS} | {
        "report.dcm",
        "report.json",
    }
    record = json.loads((folder / "report.json").read_text())
    assert said["results"] == [record]
    assert record["refused"] is None
    assert record["source"] == {
        "sop_instance_uid": source.SOPInstanceUID,
        "study_instance_uid": source.StudyInstanceUID,
        "sop_class_uid": source.SOPClassUID,
        "rows": 160,
        "columns": 128,
        "conditions": {"age_years": 61.0, "sex": "F", "view": "PA"},
    }
    for name, task in record["tasks"].items():
        assert task["status"] == "done"
        assert dcmread(folder / task["file"]).SOPInstanceUID == task["sop_instance_uid"]
        assert set(task["model"]) == {"name", "version", "digest"}
        if name != "anomaly":
            assert {"sampler", "steps", "seed"} <= set(task["parameters"])
    (finding,) = record["tasks"]["anomaly"]["findings"]
    assert finding["decision"] in ("normal", "abnormal")
    assert (finding["score"] >= finding["threshold"]) == (finding["decision"] == "abnormal")
    assert dcmread(folder / record["report"]["file"]).SOPInstanceUID == record["report"]["sop_instance_uid"]


def test_what_the_models_ran_on_and_why_is_in_the_report(tmp_path: Path) -> None:
    source = chest()
    ended, _ = analyze(tmp_path, write(tmp_path, source), tasks=("anomaly",), providers=["cuda", "cpu"])
    assert ended.returncode == 0
    folder = tmp_path / "out" / source.SOPInstanceUID
    record = json.loads((folder / "report.json").read_text())
    parameters = record["tasks"]["anomaly"]["parameters"]
    assert parameters["provider"] == "CPUExecutionProvider"
    assert "the next in the configured order; f32" in parameters["provider_reason"]
    (warning,) = parameters["warnings"]
    assert warning.startswith("the provider cuda ")
    assert warning in record["warnings"]
    assert warning in ended.stderr  # the log
    report = dcmread(folder / "report.dcm")
    told = "\n".join(str(element.value) for element in report.iterall() if element.VR == "UT")
    for words in ("provider = CPUExecutionProvider", "precision = f32", "provider_reason = ", warning):
        assert words in told


@pytest.mark.slow
def test_done_again_it_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, chest())
    analyze(tmp_path, path)
    first = results_of(tmp_path / "out")
    assert len(first) == 4
    analyze(tmp_path, path)
    assert results_of(tmp_path / "out") == first


def test_only_the_tasks_that_are_asked_for(tmp_path: Path) -> None:
    ended, said = analyze(tmp_path, write(tmp_path, chest()), tasks=("anomaly",))
    assert ended.returncode == 0
    assert list(said["results"][0]["tasks"]) == ["anomaly"]
    assert sorted(Path(name).name for name in results_of(tmp_path / "out")) == ["anomaly.dcm", "report.dcm"]


def test_images_of_one_study_are_reported_together(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    for number in (1, 2):
        write(study, chest(number), f"{number}.dcm")
    _, said = analyze(tmp_path, study)
    reports = {result["report"]["sop_instance_uid"] for result in said["results"]}
    assert len(reports) == 1
    report = dcmread(tmp_path / "out" / chest(1).SOPInstanceUID / "report.dcm")
    references = [
        item.ReferencedSOPInstanceUID
        for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
    assert {chest(1).SOPInstanceUID, chest(2).SOPInstanceUID} < set(references)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, of what is written on purpose
def test_bad_input_is_refused_with_a_reason_and_odd_input_is_analysed(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, dataset in images().items():
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    (folder / "text.dcm").write_text("This is not a DICOM file, although it is called one." * 10)
    (folder / "empty.dcm").touch()
    climbing = chest(1, study=99)
    climbing.SOPInstanceUID = climbing.file_meta.MediaStorageSOPInstanceUID = "../../climbing"
    climbing.save_as(folder / "climbing.dcm")
    ended, said = analyze(tmp_path, folder, tasks=("bone_suppression", "anomaly"))
    assert ended.returncode == 1
    by_name = {Path(result["input"]).stem: result for result in said["results"]}
    for name in (*REFUSED, "text", "empty", "climbing"):
        assert by_name[name]["refused"], name
        assert by_name[name]["refused_code"], name
        assert by_name[name]["tasks"] == {}, name
    for name in ODD:
        assert by_name[name]["refused"] is None, name
        assert {task["status"] for task in by_name[name]["tasks"].values()} == {"done"}, name
        folder = tmp_path / "out" / by_name[name]["source"]["sop_instance_uid"]
        assert dcmread(folder / "bone_suppression.dcm").PatientName == images()[name].PatientName
    refused = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("refused-")]
    assert len(refused) == 3
    assert not (tmp_path / "climbing").exists()


def test_two_files_with_one_uid_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = chest(1), chest(2)
    second.SOPInstanceUID = first.SOPInstanceUID
    second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    paths = [write(tmp_path, first, "a.dcm"), write(tmp_path, second, "b.dcm")]
    _, said = analyze(tmp_path, *paths, tasks=("restoration",))
    folders = {path.parent.name for path in (tmp_path / "out").rglob("report.json")}
    assert len(folders) == 2
    assert said["results"][1]["warnings"]


@pytest.mark.parametrize("name", ["absent.dcm", "empty-folder"])
def test_a_path_without_files_is_wrong_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty-folder").mkdir()
    ended, _ = analyze(tmp_path, tmp_path / name)
    assert ended.returncode == 2
    assert name in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_every_real_radiograph_is_analysed_and_everything_else_refused(
    tmp_path: Path, data_dir: Path
) -> None:
    ended, said = analyze(tmp_path, data_dir / "dicom")
    assert ended.returncode == 1
    assert len(said["results"]) == 11
    for result in said["results"]:
        if Path(result["input"]).name.startswith("NEG_"):
            assert result["refused"]
            continue
        assert result["refused"] is None
        assert {task["status"] for task in result["tasks"].values()} == {"done"}
        source = dcmread(result["input"], stop_before_pixels=True)
        folder = tmp_path / "out" / source.SOPInstanceUID
        suppressed: Dataset = dcmread(folder / "bone_suppression.dcm", stop_before_pixels=True)
        assert suppressed.SOPClassUID == source.SOPClassUID
        assert (suppressed.Rows, suppressed.Columns) == (source.Rows, source.Columns)


def test_what_its_header_calls_a_chest_is_refused_if_its_pixels_do_not_look_so(tmp_path: Path) -> None:
    picture = np.round(np.rot90(Phantom(5).render(256).radiograph) * 4095).astype(np.uint16)
    lying = chest(1, study=77, Rows=256, Columns=256, PixelData=picture.tobytes())
    path = write(tmp_path, lying)
    with pytest.raises(Refused, match="upright frontal chest"):
        open_source(path, Config())
    lenient = Config.model_validate({"limits": {"check_content": False}})
    assert open_source(path, lenient).radiograph.image.shape == (256, 256)
