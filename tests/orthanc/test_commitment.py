"""Storage commitment with Orthanc between: asked of its modalities for us, and asked of the node by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commitment_peer import Peer, report, send_report
from tests.orthanc.harness import Orthanc, section, until
from tests.pipeline.conftest import chest
from tests.pipeline.harness import TASKS, Bench, Child, Listening, Process

pytestmark = pytest.mark.slow  # an Orthanc takes seconds to stop

Judge = Callable[[list[str]], dict[str, int] | None]


class Site:
    """A node that forwards everything through an Orthanc to a peer of that, which is asked for commitment."""

    def __init__(self, folder: Path, orthanc: Orthanc, **peer: Any) -> None:
        self.orthanc = orthanc
        self.verdicts: list[Judge] = []
        self.peer = Peer(self._judge, orthanc.dicom, reported_ae="ORTHANC", **peer)
        orthanc.settings["DicomModalities"] = {
            "PACS": {"AET": "PEER", "Host": "127.0.0.1", "Port": self.peer.port}
        }
        orthanc.settings["AuthenticationEnabled"] = False  # test_orthanc.py has it with a password
        orthanc.start()
        self.bench = Bench(folder / "node")
        self.configure()

    def configure(self, **destination: Any) -> None:
        through = {
            "type": "orthanc",
            "url": f"http://127.0.0.1:{self.orthanc.http}",
            "modality": "PACS",
            "commitment": True,
            **destination,
        }
        self.bench.configure(
            destinations={"PACS": through},
            rules=[{"name": "all", "tasks": [], "destinations": ["PACS"], "forward_original": True}],
            deliver={"retry": {"first_seconds": 0.2, "max_seconds": 0.2, "attempts": 1000}},
        )

    def _judge(self, uids: list[str]) -> dict[str, int] | None:
        return self.verdicts.pop(0)(uids) if self.verdicts else {}

    def committed(self) -> bool:
        return any((job.result or {}).get("committed") for job in self.bench.deliveries())


@pytest.fixture
def make_site(tmp_path: Path, make_orthanc: Callable[..., Orthanc]) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**peer: Any) -> Site:
        made.append(Site(tmp_path, make_orthanc(plugin=False), **peer))
        return made[-1]

    yield make
    for site in made:
        site.peer.stop()


@pytest.fixture
def working() -> Iterator[Callable[[Site], Child]]:
    """Start a site's worker, which is ended with the test."""
    started: list[Child] = []

    def work(site: Site) -> Child:
        started.append(site.bench.work())
        return started[-1]

    yield work
    for child in started:
        child.kill()


def test_it_is_sent_again_until_the_modality_has_committed(
    make_site: Callable[..., Site], working: Callable[[Site], Child]
) -> None:
    site = make_site()

    # First a passing trouble, then silence, which is not waited for long, then the commitment.
    def trouble(uids: list[str]) -> dict[str, int]:
        site.configure(commitment_timeout=2.0)
        return dict.fromkeys(uids, 0x0213)

    def silence(uids: list[str]) -> None:
        site.configure()

    site.verdicts = [trouble, silence]
    image = chest()
    site.bench.receive(image)
    working(site)
    until(site.committed, lambda: site.bench.deliveries())
    assert site.peer.stored == [image.SOPInstanceUID] * 3
    assert len({request.TransactionUID for request in site.peer.requests}) == 3
    results = [job.result for job in site.bench.deliveries() if job.result and "waiting" not in job.result]
    assert [result["delivered"] for result in results] == [False, False, True]
    assert "0x0213 resource limitation" in results[0]["reason"]
    assert "no report" in results[1]["reason"]
    assert {job.status for job in site.bench.deliveries()} == {"done"}


def test_a_report_that_comes_late_is_fetched_and_a_lasting_refusal_is_a_dead_letter(
    make_site: Callable[..., Site], working: Callable[[Site], Child]
) -> None:
    site = make_site()
    site.verdicts = [lambda uids: None]
    image = chest()
    site.bench.receive(image)
    working(site)
    until(lambda: any("waiting" in (job.result or {}) for job in site.bench.deliveries()))
    (request,) = site.peer.requests
    refused = {str(image.SOPInstanceUID): 0x0122}
    assert send_report(site.orthanc.dicom, *report(request, refused), called_ae="ORTHANC") == 0
    until(lambda: site.bench.deliveries()[-1].status == "failed", lambda: site.bench.deliveries())
    dead = site.bench.deliveries()[-1]
    assert "not committed, 0x0122 SOP class not supported" in str(dead.error)
    # Retried, it is sent again and not judged by the same report.
    with site.bench.client() as client:
        client.retry(dead.id)
    until(site.committed, lambda: site.bench.deliveries())
    assert site.peer.stored == [image.SOPInstanceUID] * 2


def test_an_orthanc_that_has_forgotten_the_request_is_asked_again(
    make_site: Callable[..., Site], working: Callable[[Site], Child]
) -> None:
    """Orthanc keeps requests in memory: one that it asked before it was killed gets no report any more."""
    site = make_site()
    site.verdicts = [lambda uids: None]
    image = chest()
    site.bench.receive(image)
    working(site)
    until(lambda: any("waiting" in (job.result or {}) for job in site.bench.deliveries()))
    site.orthanc.kill()
    site.orthanc.start()
    until(site.committed, lambda: site.bench.deliveries())
    assert any(
        "has forgotten the request" in (job.result or {}).get("reason", "") for job in site.bench.deliveries()
    )
    assert len(site.peer.requests) == 2
    assert {job.status for job in site.bench.deliveries()} == {"done"}


def test_a_modality_without_commitment_is_told(
    make_site: Callable[..., Site], working: Callable[[Site], Child]
) -> None:
    site = make_site(offers_commitment=False)
    site.bench.receive(chest())
    working(site)
    until(lambda: [job for job in site.bench.deliveries() if job.status == "failed"])
    assert "does not offer Storage Commitment" in str(site.bench.deliveries()[-1].error)
    assert len(site.peer.stored) == 1


def test_results_made_inside_orthanc_count_when_another_orthanc_has_committed(
    make_orthanc: Callable[..., Orthanc],
) -> None:
    archive, orthanc = make_orthanc("archive", plugin=False), make_orthanc()
    # The archive reports on an association of its own, so each must know the other.
    archive.settings["DicomAet"] = "ARCHIVE"
    archive.settings["DicomModalities"] = {
        "ORTHANC": {
            "AET": "ORTHANC",
            "Host": "127.0.0.1",
            "Port": orthanc.dicom,
            "AllowStorageCommitment": True,
        }
    }
    orthanc.settings["DicomModalities"] = {
        "ARCHIVE": {"AET": "ARCHIVE", "Host": "127.0.0.1", "Port": archive.dicom}
    }
    rule = {"name": "all", "tasks": TASKS, "destinations": ["ARCHIVE"], "forward_original": True}
    orthanc.settings["PacsNode"] = section(
        orthanc.folder,
        rules=[rule],
        destinations={"ARCHIVE": {"type": "orthanc", "modality": "ARCHIVE", "commitment": True}},
    )
    archive.start()
    orthanc.start()
    image = chest()
    orthanc.upload(image)
    wanted = 1 + len(TASKS) + 1  # the image, what is made of it, and the report
    until(
        lambda: (
            len([j for j in orthanc.ready().jobs("deliver/") if (j["result"] or {}).get("committed")])
            == wanted
        ),
        lambda: f"{orthanc.jobs('deliver/')}\n{orthanc.log[-4000:]}",
    )
    orthanc.idle()
    assert len(archive.instances(image.StudyInstanceUID)) == wanted
    assert {job["status"] for job in orthanc.jobs("deliver/")} == {"done"}


def test_an_orthanc_that_asks_the_node_is_told_what_the_node_holds(
    make_orthanc: Callable[..., Orthanc], listening: Listening, start: Callable[..., Process]
) -> None:
    """Orthanc closes the association of its request at once, so the node reports on one of its own."""
    orthanc = make_orthanc(plugin=False)
    orthanc.settings["DicomModalities"] = {
        "NODE": {"AET": "PACS_NODE", "Host": "127.0.0.1", "Port": listening.port}
    }
    orthanc.settings["DicomAlwaysAllowStore"] = False
    orthanc.start()
    caller = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom}
    listening.configure(receive={"commitment": True, "check_calling_ae": True, "callers": [caller]})
    start(listening, "pacs_node.pipeline.receiver").wait_for(" receiving ")
    start(listening, "pacs_node.pipeline.worker").wait_for(" working ")
    kept, never = orthanc.upload(chest(1))["ID"], orthanc.upload(chest(2, study=2))["ID"]
    stored = orthanc.post("/modalities/NODE/store", {"Resources": [kept], "StorageCommitment": True})
    asked = orthanc.post("/modalities/NODE/storage-commitment", {"Resources": [kept, never]})

    def report(transaction: str) -> Any:
        found = orthanc.get(f"/storage-commitment/{transaction}")
        return found if found["Status"] != "Pending" else None

    first = until(lambda: report(stored["StorageCommitmentTransactionUID"]), lambda: orthanc.log)
    assert first["Status"] == "Success"
    assert [item["SOPInstanceUID"] for item in first["Success"]] == [chest(1).SOPInstanceUID]
    second = until(lambda: report(asked["ID"]), lambda: orthanc.log)
    assert second["Status"] == "Failure"
    assert [item["SOPInstanceUID"] for item in second["Success"]] == [chest(1).SOPInstanceUID]
    assert [(item["SOPInstanceUID"], item["FailureReason"]) for item in second["Failures"]] == [
        (chest(2, study=2).SOPInstanceUID, 0x0112)
    ]
