"""The spool by itself: crashes, races, retention, and keys that are not keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pacs_node.files import atomic_write
from pacs_node.receive.identity import Identity, UnreadableError, read_identity
from pacs_node.receive.incoming import TooLargeError
from pacs_node.receive.spool import Spool, Stored, uid_hash
from tests.dicom_objects import radiograph, write

CR = "1.2.840.10008.5.1.4.1.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def identity(sop: str = "1.2.3", study: str = "1.2") -> Identity:
    return Identity(CR, sop, study, f"{study}.9", EXPLICIT)


def put(spool: Spool, content: bytes = b"content", sop: str = "1.2.3", study: str = "1.2") -> Stored:
    incoming = spool.incoming(identity(sop, study), "MODALITY", 1 << 20)
    incoming.write(content)
    return spool.store(incoming, identity(sop, study), "MODALITY", "PACS_NODE")


def test_what_is_kept_of_an_object(spool: Spool) -> None:
    stored = put(spool)
    assert stored.key == f"{uid_hash('1.2')}/{uid_hash('1.2.3')}"
    assert stored.path == spool.received(stored.key) == spool.root / stored.key / "received.dcm"
    record = spool.metadata(stored.key)
    received = datetime.fromisoformat(record.pop("received_at"))
    assert abs(datetime.now(UTC) - received) < timedelta(seconds=10)
    assert record == {
        "sop_class_uid": CR,
        "sop_instance_uid": "1.2.3",
        "study_instance_uid": "1.2",
        "series_instance_uid": "1.2.9",
        "transfer_syntax_uid": EXPLICIT,
        "calling_ae": "MODALITY",
        "called_ae": "PACS_NODE",
        "sha256": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73",
        "size": 7,
        "revision": "",
    }
    assert stored.path.read_bytes()[128:132] == b"DICM"
    assert stored.path.read_bytes().endswith(b"content")
    assert stored.path.parent.stat().st_mode & 0o077 == 0  # patients' images are not for everyone


def test_objects_of_a_study_come_in_the_order_received(spool: Spool) -> None:
    keys = []
    for number in (3, 1, 2):
        keys.append(put(spool, sop=f"1.2.{number}").key)
        time.sleep(0.002)
    put(spool, sop="9.9", study="9")
    assert spool.objects(uid_hash("1.2")) == keys
    assert spool.studies() == sorted([uid_hash("1.2"), uid_hash("9")])


def test_a_process_that_died_leaves_its_half_and_the_next_removes_it(spool: Spool) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from pacs_node.receive.spool import Spool; from pacs_node.receive.identity import Identity\n"
        "identity = Identity('1', '1', '1', '1', '1.2.840.10008.1.2.1')\n"
        "incoming = Spool(Path(sys.argv[1])).incoming(identity, 'MODALITY', 1 << 20)\n"
        "incoming.write(b'half'); incoming.flush(); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(spool.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mine = spool.incoming(identity(), "MODALITY", 100)
        assert spool.prepare() == 0  # both processes are alive
        assert len(list(spool.root.glob("incoming/*/*/received.dcm"))) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert spool.prepare() == 1
    assert [*spool.root.glob("incoming/*/*/received.dcm")] == [mine.path]
    mine.discard()


def test_a_process_that_starts_does_not_take_the_first_object_of_another(spool: Spool) -> None:
    """Which has made its folder and is about to lock it."""
    ended = threading.Event()

    def start_again_and_again() -> None:
        while not ended.is_set():
            Spool(spool.root).prepare()

    with ThreadPoolExecutor(1) as other:
        starts = other.submit(start_again_and_again)
        try:
            for number in range(150):  # each Spool stands for a process
                put(Spool(spool.root), sop=f"1.2.{number}")
        finally:
            ended.set()
        starts.result()
    assert len(spool.objects(uid_hash("1.2"))) == 150


def test_a_crash_before_the_rename_leaves_no_object_and_the_repeat_is_new(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"):
        put(spool)
    monkeypatch.undo()
    assert spool.objects(uid_hash("1.2")) == []
    assert not put(spool).repeated


def test_the_limit_counts_the_data_set(spool: Spool) -> None:
    incoming = spool.incoming(identity(), "MODALITY", 10)
    incoming.write(b"0123456789")
    with pytest.raises(TooLargeError):
        incoming.write(b"x")
    incoming.discard()
    incoming.discard()
    assert not list(spool.root.glob("incoming/*/*"))


def test_a_folder_that_results_came_back_to_after_a_purge_does_not_lose_the_object(spool: Spool) -> None:
    stored = put(spool)
    spool.purge(datetime.now(UTC) + timedelta(days=1))
    stray = spool.folder(stored.key) / "results"
    stray.mkdir(parents=True)
    atomic_write(stray / "anomaly.json", b"{}")
    again = put(spool)
    assert again.path.exists()
    assert spool.metadata(again.key)["sop_instance_uid"] == "1.2.3"


def test_purge_takes_what_is_old_and_not_wanted(spool: Spool) -> None:
    old, wanted, young = (put(spool, sop=f"1.2.{n}", study=f"1.{n}") for n in range(3))
    for stored in (old, wanted):
        path = stored.path.with_name("received.json")
        record = json.loads(path.read_bytes())
        record["received_at"] = "2020-01-01T00:00:00.000+00:00"
        atomic_write(path, json.dumps(record).encode())
    reports = spool.root / old.key.split("/")[0] / "reports"
    reports.mkdir()
    (reports / "1.dcm").write_bytes(b"report")
    removed = spool.purge(datetime.now(UTC) - timedelta(days=1), keep=lambda key: key == wanted.key)
    assert removed == [old.key]
    assert not (spool.root / old.key.split("/")[0]).exists()
    assert wanted.path.exists()
    assert young.path.exists()
    with pytest.raises(KeyError):
        spool.metadata(old.key)


@pytest.mark.parametrize(
    "key", ["", "../../etc", "a/b", f"{'0' * 32}/..", f"{'0' * 32}/{'0' * 32}/x", "0" * 65]
)
def test_only_keys_are_keys(spool: Spool, key: str) -> None:
    with pytest.raises(ValueError, match="not a spool key"):
        spool.folder(key)


def test_the_identity_is_read_without_the_rest(tmp_path: Path) -> None:
    dataset = radiograph()
    path = write(tmp_path, dataset)
    offset = path.read_bytes().index(b"\x08\x00\x16\x00UI")
    whole = read_identity(path, offset, EXPLICIT)
    assert whole == Identity(
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
        dataset.StudyInstanceUID,
        dataset.SeriesInstanceUID,
        EXPLICIT,
    )
    assert whole.doubts() == []
    os.truncate(path, path.read_bytes().index(b"\x28\x00\x10\x00"))
    assert read_identity(path, offset, EXPLICIT) == whole


def test_a_sequence_nested_without_end_is_unreadable_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "nested"
    item = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(item * 100_000)
    with pytest.raises(UnreadableError):
        read_identity(path, 0, EXPLICIT)


def test_a_store_at_the_moment_of_a_purge_succeeds(spool: Spool) -> None:
    """The same objects come again and again while everything is purged; each time they are new or held."""
    put(spool)
    purging = threading.Event()
    outcomes: list[Stored] = []

    def purge() -> None:
        # A second instance, as in another process.
        while not purging.is_set():
            Spool(spool.root).purge(datetime.now(UTC) + timedelta(days=1))

    def store(number: int) -> None:
        for turn in range(150):
            outcomes.append(put(spool, sop=f"1.2.{(number + turn) % 3}"))

    with ThreadPoolExecutor(4) as pool:
        purger = pool.submit(purge)
        senders = [pool.submit(store, number) for number in range(3)]
        try:
            for sender in senders:
                sender.result()
        finally:
            purging.set()
        purger.result()
    assert len(outcomes) == 450
    assert not any(stored.conflict for stored in outcomes), "taken for other content"
    assert sum(not stored.repeated for stored in outcomes) > 10, "nothing was purged meanwhile"
