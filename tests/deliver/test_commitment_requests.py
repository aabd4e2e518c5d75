"""Storage commitment asked of a real Orthanc and of peers that report in every way they may."""

from __future__ import annotations

import json
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pacs_node.commitment import Answer, Ledger, action_information
from pacs_node.config.model import Config, Receive
from pacs_node.config.model import DicomDestination as Settings
from pacs_node.deliver.dimse import DicomDestination
from pacs_node.errors import DeliveryError
from pacs_node.receive.commitment import Verdicts
from pacs_node.receive.commitment_scp import Commitments
from pacs_node.receive.scp import Receiver
from pacs_node.receive.spool import Spool
from tests.commitment_peer import Peer, report, send_report
from tests.deliver.conftest import PASSWORD, USER, Orthanc
from tests.dicom_objects import radiograph, write


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "commitment")


@pytest.fixture
def receiver(tmp_path: Path, ledger: Ledger) -> Iterator[Receiver]:
    """The node's receiver, to which reports come."""
    config = Config(receive=Receive(host="127.0.0.1", port=1, min_free_disk_mb=0))
    config = config.model_copy(update={"receive": config.receive.model_copy(update={"port": 0})})
    commitments = Commitments(ledger, Verdicts(tmp_path / "verdicts"), lambda key: None, lambda verdict: None)
    started = Receiver(config, Spool(tmp_path / "spool"), lambda stored: None, commitments)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    running: list[Peer] = []

    def start(*arguments: Any, **how: Any) -> Peer:
        running.append(Peer(*arguments, **how))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def image(folder: Path, number: int) -> tuple[Path, str]:
    uid = f"1.2.826.0.1.3680043.11.{number}"
    return write(folder, radiograph(sop_instance_uid=uid), f"{number}.dcm"), uid


def answer(ledger: Ledger, transaction: str, seconds: float = 120) -> Answer:
    deadline = time.monotonic() + seconds
    while (found := ledger.answer(transaction)) is None:
        assert time.monotonic() < deadline, "no report came"
        time.sleep(0.02)
    return found


def destination(peer: Peer) -> DicomDestination:
    return DicomDestination("PEER", Settings.model_validate(peer.destination()), "PACS_NODE")


def test_orthanc_commits_to_what_it_has_and_to_nothing_else(
    orthanc: Orthanc, receiver: Receiver, ledger: Ledger, tmp_path: Path
) -> None:
    # Its report comes on a new association, so it must know where we listen.
    known = {"AET": "PACS_NODE", "Host": "127.0.0.1", "Port": receiver.port, "AllowStorageCommitment": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{orthanc.http}/modalities/node", json.dumps(known).encode(), method="PUT"
    )
    request.add_header("Authorization", "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode())
    with urllib.request.urlopen(request, timeout=120):
        pass
    settings = Settings(type="dicom", ae_title="ORTHANC", host="127.0.0.1", port=orthanc.dicom)
    archive = DicomDestination("ORTHANC", settings, "PACS_NODE")
    (sent, sent_uid), (unsent, unsent_uid) = image(tmp_path, 1), image(tmp_path, 2)
    archive.send([sent])
    committed = archive.request_commitment(sent, ledger)
    refused = archive.request_commitment(unsent, ledger)
    assert answer(ledger, committed) == Answer(frozenset({sent_uid}), {})
    assert answer(ledger, refused) == Answer(frozenset(), {unsent_uid: 0x0112})


@pytest.mark.parametrize("own_association", [False, True], ids=["same association", "new association"])
def test_a_report_is_kept_however_it_comes(
    own_association: bool,
    receiver: Receiver,
    ledger: Ledger,
    peer: Callable[..., Peer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The peer may be slow to report, on a machine that does much else.
    monkeypatch.setattr("pacs_node.deliver.dimse._REPORT_SECONDS", 60.0)
    path, uid = image(tmp_path, 3)
    pacs = peer(lambda uids: {}, receiver.port if own_association else None)
    transaction = destination(pacs).request_commitment(path, ledger)
    assert answer(ledger, transaction) == Answer(frozenset({uid}), {})
    pacs.stop()
    assert pacs.statuses == [0]
    (request,) = pacs.requests
    assert request.TransactionUID == transaction
    assert request.ReferencedSOPSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.1"


def test_a_failure_is_kept_with_its_reason(
    receiver: Receiver, ledger: Ledger, peer: Callable[..., Peer], tmp_path: Path
) -> None:
    path, uid = image(tmp_path, 4)
    transaction = destination(peer(lambda uids: {uid: 0x0213}, receiver.port)).request_commitment(
        path, ledger
    )
    assert answer(ledger, transaction) == Answer(frozenset(), {uid: 0x0213})


def test_a_destination_without_commitment_is_told_apart(
    ledger: Ledger, peer: Callable[..., Peer], tmp_path: Path
) -> None:
    path, _ = image(tmp_path, 5)
    with pytest.raises(DeliveryError, match="does not offer Storage Commitment") as caught:
        destination(peer(lambda uids: None, offers_commitment=False)).request_commitment(path, ledger)
    assert not caught.value.transient


def test_a_report_on_what_nobody_asked_for_is_turned_away(receiver: Receiver, ledger: Ledger) -> None:
    ledger.ask(["1.2.3"])
    for transaction in ("1.2.3.4", ""):
        information, kind = report(action_information(transaction, [("1.2", "1.2.3")]), {})
        assert send_report(receiver.port, information, kind) == 0x0115
    # What a report says beyond what was asked for is not believed.
    transaction = ledger.ask(["1.2.3"])
    information, kind = report(action_information(transaction, [("1.2", "1.2.3"), ("1.2", "9.9")]), {})
    assert send_report(receiver.port, information, kind) == 0
    assert answer(ledger, transaction) == Answer(frozenset({"1.2.3"}), {})


@pytest.mark.slow
def test_a_report_of_any_size_leaves_the_receiver_alive(receiver: Receiver, ledger: Ledger) -> None:
    transaction = ledger.ask(["1.2.3"])
    many = [("1.2.840.10008.5.1.4.1.1.1", f"1.2.826.0.1.3680043.2.{n}") for n in range(30_000)]
    information, kind = report(action_information(transaction, many), {})
    assert send_report(receiver.port, information, kind) == 0x0110
    assert ledger.answer(transaction) is None
    information, kind = report(action_information(transaction, [("1.2", "1.2.3")]), {})
    assert send_report(receiver.port, information, kind) == 0
    assert ledger.answer(transaction) is not None


def test_old_transactions_are_forgotten(ledger: Ledger) -> None:
    transaction = ledger.ask(["1.2.3"])
    assert ledger.purge(datetime.now(UTC) - timedelta(minutes=1)) == 0
    assert ledger.purge(datetime.now(UTC) + timedelta(minutes=1)) == 1
    assert not ledger.report(report(action_information(transaction, [("1.2", "1.2.3")]), {})[0])
