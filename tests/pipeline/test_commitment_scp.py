"""The node commits to what it holds: requests are judged by the spool, and reported once, whatever dies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from pacs_node.commitment import action_information
from pacs_node.config import load
from pacs_node.engine.job import Job
from pacs_node.pipeline.jobs import Jobs
from tests.commitment_requester import COMMITMENT, INSTANCE, Modality, outcome
from tests.pipeline.conftest import chest
from tests.pipeline.harness import Listening, Process, until

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
KEEP = [{"name": "all", "tasks": [], "destinations": ["FOLDER"], "forward_original": True}]


class Site:
    """A node that commits, its receiver, and a modality that asks."""

    def __init__(self, bench: Listening, start: Callable[..., Process]) -> None:
        self.bench, self._start = bench, start
        self.modality = Modality(bench.port)
        self.configure()
        self.receive()

    def configure(self, *callers: dict[str, Any], commitment: bool = True) -> None:
        self.bench.configure(
            receive={"commitment": commitment, "callers": list(callers or [self.modality.caller])},
            rules=KEEP,
            deliver={"retry": {"first_seconds": 0.2, "max_seconds": 0.2, "attempts": 1000}},
        )

    def receive(self) -> None:
        self.receiver = self._start(self.bench, "pacs_node.pipeline.receiver")
        self.receiver.wait_for(" receiving ", self.receiver.log.count(" receiving ") + 1)

    def reports(self) -> list[Job]:
        """The jobs that report, in the order in which they were enqueued."""
        return sorted(self.bench.jobs("commitment/").values(), key=lambda job: job.created)

    def pending(self) -> int:
        return len(list((self.bench.node.state_dir / "commitment-verdicts").glob("*.json")))


@pytest.fixture
def site(listening: Listening, start: Callable[..., Process]) -> Iterator[Site]:
    opened = Site(listening, start)
    yield opened
    opened.modality.stop()


def reference(dataset: Dataset) -> tuple[str, str]:
    return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)


@pytest.mark.slow
def test_what_it_holds_is_committed_and_of_the_rest_it_says_why_not(site: Site) -> None:
    held, other = chest(1), chest(2, study=2)
    site.modality.store(held, other)
    unknown, wrong = (CR, "1.2.826.0.1.3680043.9.99"), (DX, str(other.SOPInstanceUID))
    transaction = generate_uid()
    # The modality waits, so the report comes on its association.
    assert site.modality.ask([reference(held), unknown, wrong], transaction, hold=60) == 0
    (report,) = site.modality.reports
    assert report.TransactionUID == transaction
    assert outcome(report) == ({held.SOPInstanceUID}, {unknown[1]: 0x0112, other.SOPInstanceUID: 0x0119})
    assert site.modality.came_to == ["same association"]
    until(lambda: site.pending() == 0)
    site.bench.work_off()
    assert [job.result for job in site.reports()] == [
        {"reported": True, "on": "the association of the request"}
    ]
    assert len(site.modality.reports) == 1


@pytest.mark.slow
def test_who_does_not_wait_is_told_on_an_association_of_its_own(site: Site) -> None:
    held = chest()
    site.modality.store(held)
    assert site.modality.ask([reference(held)]) == 0
    site.bench.work_off()
    assert [outcome(report) for report in site.modality.reports] == [({held.SOPInstanceUID}, {})]
    assert site.modality.came_to == ["own port"]
    assert site.pending() == 0


def test_the_association_goes_on_while_a_report_is_due(site: Site) -> None:
    """A modality may store on between its request and our report, and answer the report when it comes."""
    association = site.modality.associate()
    assert association.send_c_store(chest(1)).Status == 0
    for number in range(2, 5):
        asked = action_information(generate_uid(), [reference(chest(number - 1))])
        status, _ = association.send_n_action(asked, 1, COMMITMENT, INSTANCE)
        assert status.Status == 0
        assert association.send_c_store(chest(number)).Status == 0
    site.modality.wait(3)
    assert association.send_c_store(chest(9)).Status == 0
    association.release()
    assert association.is_released
    assert site.modality.came_to == ["same association"] * 3
    assert [outcome(r)[0] for r in site.modality.reports] == [{chest(n).SOPInstanceUID} for n in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "done, not recorded"])
def test_killed_between_request_and_report_it_reports_once(site: Site, moment: str) -> None:
    held = chest()
    site.modality.store(held)
    assert site.modality.ask([reference(held)]) == 0
    site.receiver.end(signal.SIGKILL)
    (job,) = site.reports()
    assert site.bench.work(kill_at=f"{job.id} report: {moment}").wait() == -9
    site.bench.work_off()
    assert [outcome(report) for report in site.modality.reports] == [({held.SOPInstanceUID}, {})]
    assert {job.status for job in site.reports()} == {"done"}


@pytest.mark.slow
def test_a_requester_that_is_away_or_unknown_is_told_when_it_can_be(
    site: Site, free_port: Callable[[], int]
) -> None:
    held = chest()
    site.modality.store(held)
    site.configure({**site.modality.caller, "port": free_port()})
    assert site.modality.ask([reference(held)]) == 0
    child = site.bench.work()
    until(lambda: len(site.reports()) > 2)
    assert "nothing listens" in (site.reports()[0].result or {})["reason"]
    # Taken out of the configuration, and put in again as it should be.
    site.configure({"ae_title": "OTHER"})
    until(lambda: site.reports()[-1].status == "failed")
    assert "Add its host and port to receive.callers" in str(site.reports()[-1].error)
    site.configure()
    with site.bench.client() as client:
        client.retry(site.reports()[-1].id)
    site.modality.wait(1)
    until(lambda: {job.status for job in site.reports()} == {"done"})
    assert child.stop() == 0
    assert site.modality.came_to == ["own port"]


@pytest.mark.slow
def test_a_report_that_is_not_accepted_is_sent_again(site: Site) -> None:
    held = chest()
    site.modality.store(held)
    site.modality.answer = 0x0110  # processing failure
    child = site.bench.work()
    assert site.modality.ask([reference(held)], hold=60) == 0
    site.modality.wait(3)
    site.modality.answer = 0x0000
    until(lambda: site.pending() == 0)
    until(lambda: {job.status for job in site.reports()} == {"done"})
    assert child.stop() == 0
    assert site.modality.came_to[:2] == ["same association", "own port"]


@pytest.mark.slow
def test_what_could_not_be_reported_is_forgotten_in_time(site: Site) -> None:
    site.configure({"ae_title": "OTHER"})
    assert site.modality.ask([reference(chest())]) == 0
    handlers = Jobs(site.bench.node, lambda: load(site.bench.config_path))
    much_later = datetime.now(UTC) + timedelta(days=8)
    with site.bench.client() as client:
        handlers.purge(client, much_later)
        assert site.pending() == 1, "its job is not done yet"
        site.bench.work_off()
        assert [job.status for job in site.reports()] == ["failed"]
        handlers.purge(client, much_later)
    assert site.pending() == 0
    assert site.reports() == []


@pytest.mark.slow
def test_what_it_does_not_take_is_answered_so(site: Site) -> None:
    asked = [reference(chest())]
    ask = site.modality.ask
    assert ask(asked, action=2) == 0x0123
    assert ask(asked, instance="1.2.3") == 0x0112
    assert ask([]) == 0x0115
    with pytest.warns(UserWarning, match="maximum length of 64"):  # pydicom's, of what we send
        assert ask([(CR, "1.2.826.0.1.3680043.9." + "1" * 60)]) == 0x0115
    assert ask([(CR, f"1.2.826.0.1.3680043.9.7.{n}") for n in range(30_000)]) == 0x0213
    site.configure(commitment=False)
    site.receiver.process.send_signal(signal.SIGHUP)
    site.receiver.wait_for("receiving by the new configuration")
    assert ask(asked) == 0x0124
    assert site.pending() == 0
    assert site.reports() == []


@pytest.mark.slow
def test_committing_sees_to_a_job_that_could_not_be_registered(site: Site) -> None:
    """An object was kept, but its sender told to send it again; what is committed to is worked on, too."""
    held = chest()
    key = site.bench.receive(held)
    with site.bench.client() as client:
        client.purge([f"object/{key}"])
    assert site.modality.ask([reference(held)], hold=60) == 0
    assert outcome(site.modality.reports[0]) == ({held.SOPInstanceUID}, {})
    site.bench.work_off()
    assert set(site.bench.delivered()) == {held.SOPInstanceUID}
