"""A delivery with storage commitment counts only when the destination has committed, whatever dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pacs_node.config import load
from pacs_node.receive.commitment_scp import Commitments
from pacs_node.receive.scp import Receiver
from tests.commitment_peer import Peer, report, send_report
from tests.pipeline.conftest import chest
from tests.pipeline.harness import Bench


class Site:
    """A node that forwards everything to a peer which it asks for commitment, and the node's receiver."""

    def __init__(self, folder: Path, port: int) -> None:
        self.bench = Bench(folder / "node")
        self.port = port
        self.verdicts: list[Callable[[list[str]], dict[str, int] | None]] = []
        self.peer = Peer(self._judge, port)
        self.configure()
        config = load(self.bench.config_path)
        node = self.bench.node
        commitments = Commitments(node.commitments, node.verdicts, lambda _: None, lambda _: None)
        self.receiver = Receiver(config, node.spool, lambda _: None, commitments)
        self.receiver.start()

    def configure(self, **destination: Any) -> None:
        self.bench.configure(
            receive={"host": "127.0.0.1", "port": self.port, "min_free_disk_mb": 1},
            destinations={"PEER": self.peer.destination(**destination)},
            rules=[{"name": "all", "tasks": [], "destinations": ["PEER"], "forward_original": True}],
            deliver={"retry": {"first_seconds": 0.2, "max_seconds": 0.2, "attempts": 20}},
        )

    def _judge(self, uids: list[str]) -> dict[str, int] | None:
        return self.verdicts.pop(0)(uids) if self.verdicts else {}

    def stop(self) -> None:
        self.peer.stop()
        self.receiver.stop()


@pytest.fixture
def site(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Site]:
    opened = Site(tmp_path, free_port())
    yield opened
    opened.stop()


@pytest.mark.slow
def test_it_is_sent_again_until_it_is_committed(site: Site) -> None:

    # First a passing trouble, then silence, which is not waited for long, then the commitment.
    def trouble(uids: list[str]) -> dict[str, int]:
        site.configure(commitment_timeout=2.0)
        return dict.fromkeys(uids, 0x0213)

    def silence(uids: list[str]) -> None:
        site.configure()

    site.verdicts = [trouble, silence]
    site.bench.receive(chest())
    site.bench.work_off()
    assert len(site.peer.stored) == 3
    assert len({request.TransactionUID for request in site.peer.requests}) == 3
    results = [job.result for job in site.bench.deliveries() if job.result and "waiting" not in job.result]
    assert [result["delivered"] for result in results] == [False, False, True]
    assert "0x0213 resource limitation" in results[0]["reason"]
    assert "no report" in results[1]["reason"]
    assert results[2]["committed"]
    assert {job.status for job in site.bench.deliveries()} == {"done"}


@pytest.mark.slow
def test_a_lasting_refusal_is_a_dead_letter_with_its_reason(site: Site) -> None:
    site.verdicts = [lambda uids: dict.fromkeys(uids, 0x0122)]
    key = site.bench.receive(chest())
    site.bench.work_off()
    job = site.bench.deliveries()[-1]
    assert job.status == "failed"
    assert "not committed, 0x0122 SOP class not supported" in str(job.error)
    assert str(chest().SOPInstanceUID) in str(job.error)
    assert job.key == f"{key}/received"


@pytest.mark.slow
def test_a_dead_letter_that_is_retried_is_sent_again(site: Site) -> None:
    site.verdicts = [lambda uids: None]
    site.bench.receive(chest())
    child = site.bench.work()
    try:
        _until(
            lambda: any(job.status == "done" and "waiting" in job.result for job in site.bench.deliveries())
        )
        (request,) = site.peer.requests
        uid = str(request.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        assert send_report(site.port, *report(request, {uid: 0x0122})) == 0
        _until(lambda: site.bench.deliveries()[-1].status == "failed")
        with site.bench.client() as client:
            client.retry(site.bench.deliveries()[-1].id)
        _until(lambda: (site.bench.deliveries()[-1].result or {}).get("committed"))
    finally:
        assert child.stop() == 0
    assert len(site.peer.stored) == 2
    assert {job.status for job in site.bench.deliveries()} == {"done"}


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_report_that_comes_while_the_worker_is_dead_counts(site: Site) -> None:
    site.verdicts = [lambda uids: None]  # nothing until we say so
    key = site.bench.receive(chest())
    attempt = f"deliver/{key}/received/PEER/1"
    killed = site.bench.work(kill_at=f"{attempt} request commitment: recorded")
    assert killed.wait() == -9
    (request,) = site.peer.requests
    information, kind = report(request, {})
    assert send_report(site.port, information, kind) == 0
    site.bench.work_off()
    assert site.bench.deliveries()[-1].result == {"delivered": True, "committed": True}
    assert len(site.peer.stored) == 1
    assert len(site.peer.requests) == 1


@pytest.mark.slow
def test_killed_between_request_and_record_it_asks_again(site: Site) -> None:
    key = site.bench.receive(chest())
    boundary = f"deliver/{key}/received/PEER/1 request commitment: done, not recorded"
    assert site.bench.work(kill_at=boundary).wait() == -9
    site.bench.work_off()
    assert site.bench.deliveries()[-1].result == {"delivered": True, "committed": True}
    assert len(site.peer.stored) == 1
    assert len(site.peer.requests) == 2


@pytest.mark.slow
def test_waiting_for_reports_holds_up_nothing(site: Site) -> None:
    """More deliveries than the queue has slots wait for a report; others pass them."""
    waiting = 6
    site.verdicts = [lambda uids: None] * waiting
    began = time.monotonic()
    keys = [site.bench.receive(chest(number)) for number in range(1, waiting + 4)]
    child = site.bench.work()
    try:
        while True:
            done = [job for job in site.bench.deliveries() if job.result and job.result.get("committed")]
            if len(done) == len(keys) - waiting:
                break
            assert time.monotonic() - began < 240
            time.sleep(0.2)
        for request in list(site.peer.requests):
            send_report(site.port, *report(request, {}))
        while len([j for j in site.bench.deliveries() if j.result and j.result.get("committed")]) < len(keys):
            assert time.monotonic() - began < 240
            time.sleep(0.2)
    finally:
        assert child.stop() == 0
    assert len(site.peer.stored) == len(keys)
