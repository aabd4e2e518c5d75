"""Tasks that failed in an analysis that is done are done again: once, with the same UIDs, whatever dies."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage
from typer.testing import CliRunner

from pacs_node.cli.main import app
from pacs_node.pipeline.retry import to_retry
from tests.pipeline.conftest import chest
from tests.pipeline.harness import MODELS, Bench, settings


def models(**changes: str) -> dict[str, Any]:
    """The section of the configuration, with other models for some tasks."""
    return {**settings(MODELS)["models"], **changes}


def jobs(bench: Bench, *arguments: str) -> Any:
    """What ``pacs-node jobs`` answers, decoded."""
    result = CliRunner().invoke(app, ["jobs", *arguments, "--json", "--config", str(bench.config_path)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def reports(bench: Bench) -> list[Dataset]:
    """The delivered reports, the oldest first."""
    objects = [dcmread(BytesIO(content)) for content in bench.delivered().values()]
    found = [ds for ds in objects if ds.SOPClassUID == Comprehensive3DSRStorage]
    return sorted(found, key=lambda ds: ds.InstanceNumber)


def assert_each_sent_once(bench: Bench) -> None:
    """The image, three results and two reports, each by its first delivery."""
    deliveries = {job.id: job.result for job in bench.jobs("deliver/").values()}
    assert len(deliveries) == 6, deliveries
    assert all(job_id.endswith("/FOLDER/1") for job_id in deliveries), deliveries


@pytest.fixture
def failed(bench: Bench) -> tuple[Bench, str]:
    """A node in which one of three tasks has failed, as its model was not there; and the object's key."""
    bench.configure(models=models(anomaly="absent"))
    key = bench.receive(chest())
    bench.work_off()
    assert len(bench.delivered()) == 4  # the image, two results and the report
    bench.configure()
    return bench, key


@pytest.mark.slow
def test_a_failed_task_is_done_again_alone_and_the_report_follows(
    failed: tuple[Bench, str], tmp_path: Path
) -> None:
    bench, key = failed
    before = bench.delivered()
    untried = Bench(tmp_path / "untried")
    untried.receive(chest())
    untried.work_off()
    listed = CliRunner().invoke(app, ["jobs", "list", "--config", str(bench.config_path)]).stdout
    assert f"done       analyse/{key}  failed in it: anomaly" in listed
    (again,) = jobs(bench, "retry", "--all")
    assert again["id"] == f"analyse/{key}/2"
    # A second time, before it has run: it is the same job.
    (same,) = jobs(bench, "retry", f"analyse/{key}")
    assert same["id"] == again["id"]
    bench.work_off()
    done = bench.jobs()[f"analyse/{key}/2"]
    assert done.result["tasks"].keys() == {"anomaly"}
    assert done.result["tasks"]["anomaly"]["status"] == "done"
    added = {uid: content for uid, content in bench.delivered().items() if uid not in before}
    first, second = reports(bench)
    assert second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[
        0
    ].ReferencedSOPInstanceUID == (first.SOPInstanceUID)
    # The heatmap is the one that a node where nothing failed has made; the report is another, as it has a
    # predecessor.
    (heatmap,) = set(added) - {second.SOPInstanceUID}
    assert heatmap in untried.delivered()
    assert_each_sent_once(bench)
    # There is nothing left to retry.
    with bench.client() as client:
        assert to_retry(client) == []
    number = len(bench.jobs())
    (left,) = jobs(bench, "retry", f"analyse/{key}")
    assert left["id"] == f"analyse/{key}/2"
    assert len(bench.jobs()) == number


@pytest.mark.slow
def test_a_task_that_fails_again_can_be_tried_again(failed: tuple[Bench, str]) -> None:
    bench, key = failed
    bench.configure(models=models(anomaly="absent"))
    jobs(bench, "retry", f"analyse/{key}")
    bench.work_off()
    assert len(reports(bench)) == 1, "nothing has changed, so there is nothing new to report"
    bench.configure()
    (again,) = jobs(bench, "retry", f"analyse/{key}")
    assert again["id"] == f"analyse/{key}/3"
    bench.work_off()
    assert len(bench.delivered()) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "boundary",
    [
        "anomaly: before",
        "anomaly: done, not recorded",
        "anomaly: recorded",
    ],
)
def test_killed_while_it_is_done_again_it_is_delivered_once(failed: tuple[Bench, str], boundary: str) -> None:
    bench, key = failed
    jobs(bench, "retry", f"analyse/{key}")
    assert bench.work(kill_at=f"analyse/{key}/2 {boundary}").wait() == -9
    bench.work_off()
    assert len(bench.delivered()) == 6
    assert len(reports(bench)) == 2
    assert_each_sent_once(bench)


@pytest.mark.slow
def test_what_was_tried_again_goes_with_its_object(
    failed: tuple[Bench, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime, timedelta

    from pacs_node.config import load
    from pacs_node.pipeline.jobs import Jobs

    bench, key = failed
    jobs(bench, "retry", f"analyse/{key}")
    bench.work_off()
    with bench.client() as client:
        handlers = Jobs(bench.node, lambda: load(bench.config_path))
        assert handlers.purge(client, datetime.now(UTC) + timedelta(days=8)) == 1
    assert bench.jobs() == {}
