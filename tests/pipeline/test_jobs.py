"""What the jobs decide: refusals, failures, late images, poison, retention. The worker is the real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from pacs_node.config import load
from pacs_node.engine.job import URGENT
from pacs_node.pipeline.jobs import Jobs, is_urgent
from tests.pipeline.bad_input import ODD, REFUSED, images
from tests.pipeline.conftest import chest
from tests.pipeline.harness import TASKS, Bench, settings


def reports(bench: Bench) -> list[Dataset]:
    """The delivered reports, the oldest first."""
    objects = [dcmread(BytesIO(content)) for content in bench.delivered().values()]
    found = [ds for ds in objects if ds.SOPClassUID == Comprehensive3DSRStorage]
    return sorted(found, key=lambda ds: ds.InstanceNumber)


def evidence(report: Dataset) -> set[str]:
    """SOP Instance UIDs that a report refers to."""
    return {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def test_an_image_is_analysed_and_everything_is_delivered(bench: Bench) -> None:
    source = chest()
    key = bench.receive(source)
    bench.work_off()
    delivered = bench.delivered()
    assert len(delivered) == 5
    original = delivered.pop(source.SOPInstanceUID)
    assert dcmread(BytesIO(original)).PixelData == source.PixelData
    kinds = sorted(str(dcmread(BytesIO(content)).SOPClassUID.name) for content in delivered.values())
    assert kinds == [
        "Comprehensive 3D SR Storage",
        "Computed Radiography Image Storage",
        "Computed Radiography Image Storage",
        "Secondary Capture Image Storage",
    ]
    (report,) = reports(bench)
    assert evidence(report) == {source.SOPInstanceUID, *(set(delivered) - {report.SOPInstanceUID})}
    analysed = bench.jobs()[f"analyse/{key}"]
    assert analysed.result["refused"] is None
    assert [analysed.result["tasks"][task]["status"] for task in TASKS] == ["done"] * 3


@pytest.mark.slow
def test_the_same_image_again_changes_nothing(bench: Bench) -> None:
    bench.receive(chest())
    bench.work_off()
    before, jobs = bench.delivered(), bench.jobs()
    bench.receive(chest())
    bench.work_off()
    assert bench.delivered() == before
    assert bench.jobs() == jobs


def test_an_image_out_of_scope_is_forwarded_and_its_refusal_recorded(bench: Bench) -> None:
    source = chest(BodyPartExamined="HAND")
    key = bench.receive(source)
    bench.work_off()
    assert set(bench.delivered()) == {source.SOPInstanceUID}
    job = bench.jobs()[f"object/{key}"]
    assert job.status == "done"
    assert job.result["refused"]["code"] == "not-chest"
    assert f"analyse/{key}" not in bench.jobs()


def test_pixels_that_cannot_be_read_are_refused_forwarded_and_reported_as_not_analysed(bench: Bench) -> None:
    source = chest()
    source.PixelData = source.PixelData[:1000]
    key = bench.receive(source)
    bench.work_off()
    job = bench.jobs()[f"analyse/{key}"]
    assert job.status == "done"
    assert job.result["refused"]["code"]
    assert job.result["tasks"] == {}
    (report,) = reports(bench)
    assert set(bench.delivered()) == {source.SOPInstanceUID, report.SOPInstanceUID}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_object_with_wrong_uids_is_forwarded_and_its_refusal_recorded(bench: Bench) -> None:
    climbing, homeless = chest(1, study=1), chest(1, study=2)
    climbing.SOPInstanceUID = climbing.file_meta.MediaStorageSOPInstanceUID = "../../climbing"
    homeless.StudyInstanceUID = ""
    keys = [bench.receive(climbing), bench.receive(homeless)]
    bench.work_off()
    decisions = [bench.jobs()[f"object/{key}"].result for key in keys]
    assert [decision["refused"]["code"] for decision in decisions] == ["bad-uid", "missing-uid"]
    received = [dcmread(BytesIO(content)).SOPInstanceUID for content in bench.delivered().values()]
    assert sorted(received) == sorted([climbing.SOPInstanceUID, homeless.SOPInstanceUID])


def test_an_object_that_no_rule_wants_is_kept_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node", {"rules": []})
    key = bench.receive(chest())
    bench.work_off()
    assert bench.delivered() == {}
    assert bench.jobs()[f"object/{key}"].result["rule"] is None
    assert bench.node.spool.received(key).exists()


def a_result(bench: Bench) -> Dataset:
    """A bone-suppressed image that the bench has delivered."""
    bench.receive(chest())
    bench.work_off()
    made = (dcmread(BytesIO(content)) for content in bench.delivered().values())
    return next(ds for ds in made if "BONE_SUPPRESSED" in ds.get("ImageType", []))


@pytest.mark.slow
def test_an_own_result_that_comes_back_is_forwarded_as_the_rule_says_and_never_analysed(bench: Bench) -> None:
    result = a_result(bench)
    before = bench.delivered()
    result.PatientComments = "changed on the way"  # so that its delivery can be told from the first
    key = bench.receive(result)
    bench.work_off()
    job = bench.jobs()[f"object/{key}"]
    assert job.result["own_result"] is True
    assert f"analyse/{key}" not in bench.jobs()
    sent = [j for j in bench.jobs().values() if j.kind == "deliver" and j.key.startswith(key)]
    assert [j.payload["file"] for j in sent] == [f"{key}/received"]
    (added,) = set(bench.delivered()) - set(before)
    assert dcmread(BytesIO(bench.delivered()[added])).PatientComments == result.PatientComments


@pytest.mark.slow
def test_an_own_result_is_not_sent_back_to_whom_it_came_from(tmp_path: Path) -> None:
    made = a_result(Bench(tmp_path / "first"))
    pacs = {"type": "dicom", "ae_title": "MODALITY", "host": "127.0.0.1", "port": 1}
    rules = [
        {"name": "all", "when": {}, "tasks": [], "destinations": ["pacs"], "forward_original": True},
    ]
    bench = Bench(tmp_path / "second", {"destinations": {"pacs": pacs}, "rules": rules})
    key = bench.receive(made)
    assert bench.node.spool.metadata(key)["calling_ae"] == "MODALITY"
    bench.work_off()
    assert bench.jobs()[f"object/{key}"].result["destinations"] == []
    assert not [job for job in bench.jobs().values() if job.kind == "deliver"]


def test_a_task_whose_model_fails_is_reported_as_failed_and_the_others_go_on(tmp_path: Path) -> None:
    models = {**settings(tmp_path)["models"], "restoration": "missing"}
    bench = Bench(tmp_path / "node", {"models": models})
    key = bench.receive(chest())
    bench.work_off()
    tasks = bench.jobs()[f"analyse/{key}"].result["tasks"]
    assert {name: outcome["status"] for name, outcome in tasks.items()} == {
        "bone_suppression": "done",
        "restoration": "failed",
        "anomaly": "done",
    }
    assert "There is no model 'missing'" in tasks["restoration"]["error"]
    (report,) = reports(bench)
    assert report.CompletionFlag == "PARTIAL"
    assert len(bench.delivered()) == 4


@pytest.mark.slow
def test_images_of_one_study_get_one_report_and_a_late_one_a_second_that_names_the_first(
    bench: Bench,
) -> None:
    first, second, late = chest(1), chest(2), chest(3)
    bench.receive(first)
    bench.receive(second)
    bench.work_off()
    (report,) = reports(bench)
    assert {first.SOPInstanceUID, second.SOPInstanceUID} < evidence(report)
    assert "PredecessorDocumentsSequence" not in report
    bench.receive(late)
    bench.work_off()
    before, after = reports(bench)
    assert before == report
    assert {ds.SOPInstanceUID for ds in (first, second, late)} < evidence(after)
    predecessor = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert predecessor.ReferencedSOPInstanceUID == report.SOPInstanceUID


@pytest.mark.slow
def test_a_report_waits_for_an_image_of_the_study_that_is_still_being_analysed(tmp_path: Path) -> None:
    """Two images, no quiet time at all: still one report, made when both are done."""
    bench = Bench(tmp_path / "node", {"study": {"quiet_seconds": 0}})
    for number in (1, 2, 3):
        bench.receive(chest(number))
    bench.work_off()
    last = reports(bench)[-1]
    assert {chest(number).SOPInstanceUID for number in (1, 2, 3)} < evidence(last)
    assert len(reports(bench)) == 1


@pytest.mark.slow
def test_other_content_under_the_same_uid_is_analysed_beside_the_first(bench: Bench) -> None:
    first = chest()
    twin = chest(2)
    twin.SOPInstanceUID = first.SOPInstanceUID
    keys = [bench.receive(first), bench.receive(twin)]
    bench.work_off()
    assert keys[1].startswith(keys[0] + "-")
    assert all(bench.jobs()[f"analyse/{key}"].status == "done" for key in keys)


@pytest.mark.slow
def test_an_image_that_ends_its_process_is_parked_reported_as_failed_and_forwarded(bench: Bench) -> None:
    poisonous, healthy = chest(1, study=1), chest(1, study=2)
    key = bench.receive(poisonous)
    bench.receive(healthy)
    starts = 0
    # As the supervisor does: start it again whenever it dies.
    while bench.work(poison=poisonous.SOPInstanceUID, until_idle=True).wait() != 0:
        starts += 1
        assert starts < 6
    bench.work_off(poison=poisonous.SOPInstanceUID)
    assert starts == 3
    assert bench.jobs()[f"analyse/{key}"].status == "dead"
    delivered = bench.delivered()
    assert len(delivered) == 5 + 2
    assert poisonous.SOPInstanceUID in delivered
    failed = next(
        report for report in reports(bench) if report.StudyInstanceUID == poisonous.StudyInstanceUID
    )
    assert failed.CompletionFlag == "PARTIAL"
    # A later retry, with the cause removed, makes what is missing and a report that replaces the first.
    with bench.client() as client:
        client.retry(f"analyse/{key}")
    bench.work_off()
    assert len(bench.delivered()) == 5 + 5 + 1
    whole = [r for r in reports(bench) if r.StudyInstanceUID == poisonous.StudyInstanceUID][-1]
    assert whole.CompletionFlag == "COMPLETE"
    assert whole.PredecessorDocumentsSequence


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, of what is written on purpose
def test_urgent_requests_go_first() -> None:
    assert not is_urgent(Dataset())
    for keyword in ("RequestedProcedurePriority", "StudyPriorityID"):
        for word, urgent in (
            ("STAT", True),
            ("HIGH ", True),
            ("stat", True),
            ("ROUTINE", False),
            ("", False),
        ):
            header = Dataset()
            setattr(header, keyword, word)
            assert is_urgent(header) is urgent


def test_urgency_reaches_every_job_of_the_object(bench: Bench) -> None:
    bench.receive(chest(RequestedProcedurePriority="STAT"))
    bench.work_off()
    jobs = [job for job in bench.jobs().values() if job.kind != "object"]
    assert len(jobs) == 7
    assert {job.priority for job in jobs} == {URGENT}


@pytest.mark.slow
def test_a_destination_that_refuses_for_good_leaves_a_dead_letter_that_can_be_retried(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node")
    rules = [{"name": "all", "destinations": ["FOLDER"], "forward_original": True}]
    key = bench.receive(chest())
    blocker = bench.folder / "delivered"
    blocker.write_text("a file where the folder should be")
    retry = {"retry": {"first_seconds": 0.1, "max_seconds": 0.1, "attempts": 3}}
    bench.configure(rules=rules, deliver=retry)
    bench.work_off()
    attempts = sorted(job for job in bench.jobs() if job.startswith("deliver/"))
    last = bench.jobs()[attempts[-1]]
    assert last.status == "failed"
    assert "FOLDER" in str(last.error)
    assert len(attempts) <= 3
    blocker.unlink()
    with bench.client() as client:
        client.retry(last.id)
    bench.work_off()
    assert set(bench.delivered()) == {chest().SOPInstanceUID}
    assert bench.jobs()[f"object/{key}"].status == "done"


@pytest.mark.slow
def test_what_is_old_and_done_is_purged_and_what_is_not_delivered_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node")
    rules = [
        {
            "name": "hands",
            "when": {"BodyPartExamined": "HAND"},
            "destinations": ["GONE"],
            "forward_original": True,
        },
        {"name": "all", "tasks": TASKS, "destinations": ["FOLDER"], "forward_original": True},
    ]
    destinations = {
        **settings(bench.folder)["destinations"],
        "GONE": {"type": "folder", "path": "/proc/none/here"},
    }
    retry = {"retry": {"first_seconds": 0.1, "max_seconds": 0.1, "attempts": 1}}
    bench.configure(rules=rules, destinations=destinations, deliver=retry)
    done, undelivered = bench.receive(chest(study=1)), bench.receive(chest(study=2, BodyPartExamined="HAND"))
    bench.work_off()
    jobs = Jobs(bench.node, lambda: load(bench.config_path))
    with bench.client() as client:
        assert jobs.purge(client) == 0
        later = datetime.now(UTC) + timedelta(days=8)
        assert jobs.purge(client, later) == 1
        assert not bench.node.spool.folder(done).exists()
        assert bench.node.spool.folder(undelivered).exists()
        assert not [job for job in bench.jobs() if done.partition("/")[0] in job]
        failed = next(job for job in bench.jobs().values() if job.status == "failed")
        client.cancel(failed.id)
        assert jobs.purge(client, later) == 1
    assert bench.jobs() == {}
    assert bench.node.spool.studies() == []


@pytest.mark.slow
def test_a_changed_configuration_is_taken_over_between_jobs_and_a_wrong_one_is_not(bench: Bench) -> None:
    worker = bench.work()
    log = bench.folder / "worker.log"
    bench.receive(chest(study=1))
    wait_until(lambda: len(bench.delivered()) == 5)
    bench.config_path.write_text("rules: [{name: wrong, tasks: [bone_supression]}]")
    bench.receive(chest(study=2))
    wait_until(lambda: len(bench.delivered()) == 10)
    assert "configuration not taken over" in log.read_text()
    second = bench.folder / "second"
    base = settings(bench.folder)
    bench.configure(
        destinations={**base["destinations"], "SECOND": {"type": "folder", "path": str(second)}},
        rules=[{"name": "new", "destinations": ["SECOND"], "forward_original": True}],
    )
    bench.receive(chest(study=3))
    wait_until(lambda: len(list(second.rglob("*.dcm"))) == 1)
    assert len(bench.delivered()) == 10
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 5


def test_only_one_worker_runs_the_jobs_of_a_node(bench: Bench) -> None:
    first = bench.work()
    wait_until(lambda: "working" in log_of(bench))
    assert bench.work().wait() == 1
    assert "another worker" in log_of(bench)
    assert first.stop() == 0


def test_the_log_says_what_happened_and_nothing_of_the_patient(bench: Bench) -> None:
    source = chest(PatientName="Secret^Person", PatientID="SECRETID", PatientBirthDate="19610101")
    key = bench.receive(source)
    bench.work_off()
    log = log_of(bench)
    for job in (f"object/{key}", f"analyse/{key}", f"report/{key}/1", f"deliver/{key}/received/FOLDER/1"):
        assert f"job={job}" in log
    assert "ERROR" not in log
    for secret in ("Secret", "SECRETID", "19610101"):
        assert secret not in log
    for job in bench.jobs().values():
        assert "SECRET" not in json.dumps([job.payload, job.result]).upper()


def log_of(bench: Bench) -> str:
    path = bench.folder / "worker.log"
    return path.read_text() if path.exists() else ""


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_nothing_that_is_bad_stops_the_node_or_is_lost(bench: Bench) -> None:
    keys = {name: bench.receive(image) for name, image in images().items()}
    bench.work_off()
    jobs = bench.jobs()
    assert {job.status for job in jobs.values()} == {"done"}
    delivered = bench.delivered()
    for name, image in images().items():
        assert image.SOPInstanceUID in delivered, name
        decided = jobs[f"object/{keys[name]}"].result
        analysed = jobs.get(f"analyse/{keys[name]}")
        refused = decided["refused"] or (analysed.result["refused"] if analysed else None)
        assert bool(refused) is (name in REFUSED), name
        if name in ODD:
            assert analysed is not None
            assert {task["status"] for task in analysed.result["tasks"].values()} == {"done"}, name
