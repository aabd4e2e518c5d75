"""The Storage SCP on a real network interface, called by pynetdicom and by sockets that misbehave."""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, _config
from pynetdicom.dimse_primitives import C_STORE

from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from tests.dicom_objects import ENCODERS, data_set_bytes, radiograph, write, write_in
from tests.receive.conftest import Running, Start, changed


@pytest.fixture(autouse=True)
def raw_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go out as the bytes they hold, so that what arrives can be compared."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)


def send_raw(
    association: object, body: bytes, sop_class: str, sop_instance: str, syntax: str
) -> pydicom.Dataset:
    """A C-STORE whose command set and data set say what they like."""
    context = next(
        cx
        for cx in association.accepted_contexts
        if cx.abstract_syntax == ComputedRadiographyImageStorage and cx.transfer_syntax[0] == syntax
    )
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = sop_instance
    request.Priority = 2
    request.DataSet = io.BytesIO(body)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    status = pydicom.Dataset()
    status.Status = response.Status
    status.ErrorComment = response.ErrorComment
    return status


# -- what is accepted ------------------------------------------------------------------------------


def test_every_listed_transfer_syntax_is_accepted_and_kept_byte_for_byte(
    running: Running, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    assert set(ENCODERS) == set(TRANSFER_SYNTAXES)
    association = running.associate()
    assert association.is_established
    for syntax in TRANSFER_SYNTAXES:
        sent = write_in(tmp_path, syntax, require_tool)
        assert association.send_c_store(sent).Status == 0x0000, syntax
        kept = running.stored[-1].path
        meta = pydicom.filereader.read_file_meta_info(kept)
        assert data_set_bytes(kept) == data_set_bytes(sent)
        assert meta.TransferSyntaxUID == syntax
        assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
        assert meta.SourceApplicationEntityTitle == "MODALITY"
        assert pydicom.dcmread(kept).SOPInstanceUID == meta.MediaStorageSOPInstanceUID
    association.release()
    assert not any(stored.repeated or stored.conflict for stored in running.stored)
    assert not running.incoming()


def test_negotiation_names_this_implementation_and_its_pdu(running: Running) -> None:
    association = running.associate()
    assert association.acceptor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert association.acceptor.implementation_version_name == IMPLEMENTATION_VERSION_NAME
    assert association.acceptor.maximum_length == 131_072
    assert association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_listed_sop_class_is_accepted_in_every_listed_transfer_syntax(
    running: Running, syntax: str
) -> None:
    ae = AE(ae_title="MODALITY")
    for sop_class in STORAGE_SOP_CLASSES:
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate("127.0.0.1", running.port, ae_title="PACS_NODE")
    assert {cx.abstract_syntax for cx in association.accepted_contexts} == set(STORAGE_SOP_CLASSES)
    assert not association.rejected_contexts
    association.release()


def test_one_object_of_every_sop_class_is_stored(running: Running, tmp_path: Path) -> None:
    ae = AE(ae_title="MODALITY")
    for sop_class in STORAGE_SOP_CLASSES:
        ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", running.port, ae_title="PACS_NODE")
    for sop_class in STORAGE_SOP_CLASSES:
        assert association.send_c_store(write(tmp_path, radiograph(sop_class=sop_class))).Status == 0x0000
    association.release()
    kept = [running.spool.metadata(stored.key)["sop_class_uid"] for stored in running.stored]
    assert kept == list(STORAGE_SOP_CLASSES)


def test_a_sop_class_that_is_not_ours_is_refused_in_negotiation(running: Running) -> None:
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2")  # CT
    ae.add_requested_context(ComputedRadiographyImageStorage)
    association = ae.associate("127.0.0.1", running.port, ae_title="PACS_NODE")
    assert [cx.abstract_syntax for cx in association.accepted_contexts] == [ComputedRadiographyImageStorage]
    assert association.rejected_contexts[0].result == 3  # abstract syntax not supported
    association.release()


# -- what is answered ------------------------------------------------------------------------------


def test_a_repeat_is_a_success_without_a_second_file_and_is_registered_again(
    running: Running, tmp_path: Path
) -> None:
    sent = write(tmp_path, radiograph())
    association = running.associate()
    assert [association.send_c_store(sent).Status for _ in range(2)] == [0x0000, 0x0000]
    association.release()
    first, again = running.stored
    assert (first.key, first.repeated) == (again.key, False)
    assert again.repeated
    assert len(list(running.spool.root.glob("*/*/received.dcm"))) == 1


def test_other_content_under_the_same_uid_is_kept_beside_the_first(running: Running, tmp_path: Path) -> None:
    uid, study = generate_uid(), generate_uid()
    one = write(tmp_path, radiograph(sop_instance_uid=uid, study_instance_uid=study, seed=1), "1.dcm")
    two = write(tmp_path, radiograph(sop_instance_uid=uid, study_instance_uid=study, seed=2), "2.dcm")
    association = running.associate()
    for path in (one, two, two):
        assert association.send_c_store(path).Status == 0x0000
    association.release()
    first, second, third = running.stored
    assert (first.conflict, second.conflict, second.repeated, third.conflict, third.repeated) == (
        False, True, False, True, True,
    )  # fmt: skip
    assert second.key.startswith(first.key + "-")
    assert third.key == second.key
    assert data_set_bytes(first.path) == data_set_bytes(one)
    assert data_set_bytes(second.path) == data_set_bytes(two)


def test_an_object_is_durable_before_the_sender_hears_of_it(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is fsynced, it gets its name, the name is fsynced, the job is registered: in this order."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    running.before_registering = lambda: events.append("registered")
    association = running.associate()
    assert association.send_c_store(write(tmp_path, radiograph())).Status == 0x0000
    association.release()
    study = running.stored[0].key.split("/")[0]
    renamed, registered = events.index("rename"), events.index("registered")
    assert events.index("fsync received.dcm") < renamed < registered
    assert "fsync received.json" in events[:renamed]
    assert f"fsync {study}" in events[renamed:registered]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.7"}, 0x0122, "presentation context"),
        ({"sop_instance": "1.2.3.4"}, 0xA900, "SOP Instance UID"),
        ({"body": b"\xff\xfe\xfd" * 1000}, 0xC000, ""),
        ({"body": b"\x00" * 70_000}, 0xC000, ""),
    ],
    ids=["other-class", "other-instance", "garbage", "zeros"],
)
def test_what_is_wrong_is_said_with_a_status_and_leaves_nothing(
    running: Running, tmp_path: Path, change: dict[str, object], status: int, words: str
) -> None:
    dataset = radiograph()
    values = {
        "body": data_set_bytes(write(tmp_path, dataset)),
        "sop_class": dataset.SOPClassUID,
        "sop_instance": dataset.SOPInstanceUID,
        "syntax": ExplicitVRLittleEndian,
        **change,
    }
    association = running.associate()
    answer = send_raw(association, **values)
    assert answer.Status == status
    assert words in answer.ErrorComment
    assert association.send_c_echo().Status == 0x0000  # it goes on
    association.release()
    assert running.stored == []
    assert not running.incoming()


def test_a_sop_class_that_the_data_set_denies_is_a900(running: Running, tmp_path: Path) -> None:
    dataset = radiograph(sop_class="1.2.840.10008.5.1.4.1.1.1.1")
    association = running.associate()
    answer = send_raw(
        association,
        data_set_bytes(write(tmp_path, dataset)),
        ComputedRadiographyImageStorage,
        dataset.SOPInstanceUID,
        ExplicitVRLittleEndian,
    )
    association.release()
    assert answer.Status == 0xA900


def test_a_deflate_bomb_is_read_only_as_far_as_the_uids(running: Running) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(128)) + packer.flush()
    association = running.associate()
    tracemalloc.start()
    answer = send_raw(association, bomb, ComputedRadiographyImageStorage, "1.2.3", "1.2.840.10008.1.2.1.99")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    association.release()
    assert answer.Status == 0xC000
    assert peak < 30 << 20  # inflated it has 128 MB


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_with_path_characters_is_stored_under_its_hash_with_a_warning(
    running: Running, tmp_path: Path
) -> None:
    uid = "../../../../tmp/evil"
    dataset = radiograph()
    plain = data_set_bytes(write(tmp_path, dataset))
    old = dataset.SOPInstanceUID.encode().ljust(
        len(dataset.SOPInstanceUID) + len(dataset.SOPInstanceUID) % 2, b"\0"
    )
    new = uid.encode()
    body = plain.replace(struct.pack("<H", len(old)) + old, struct.pack("<H", len(new)) + new, 1)
    assert body != plain
    association = running.associate()
    answer = send_raw(association, body, ComputedRadiographyImageStorage, uid, ExplicitVRLittleEndian)
    association.release()
    assert answer.Status == 0xB007
    assert "sop_instance_uid" in answer.ErrorComment
    (stored,) = running.stored
    assert stored.path.is_relative_to(running.spool.root)
    assert data_set_bytes(stored.path) == body
    assert running.spool.metadata(stored.key)["sop_instance_uid"] == uid
    assert not Path("/tmp/evil").exists()


def test_an_object_without_a_study_is_kept_in_a_study_of_its_own(running: Running, tmp_path: Path) -> None:
    association = running.associate()
    for number in range(2):
        dataset = radiograph()
        del dataset.StudyInstanceUID
        assert association.send_c_store(write(tmp_path, dataset, f"{number}.dcm")).Status == 0xB007
    association.release()
    assert len({stored.key.split("/")[0] for stored in running.stored}) == 2


def test_a_job_that_cannot_be_registered_is_a700_and_the_repeat_heals_it(
    running: Running, tmp_path: Path
) -> None:
    sent = write(tmp_path, radiograph())
    association = running.associate()
    running.fails.append(RuntimeError("database is locked"))
    assert association.send_c_store(sent).Status == 0xA700
    running.fails.clear()
    assert association.send_c_store(sent).Status == 0x0000
    association.release()
    (stored,) = running.stored
    assert stored.repeated


# -- who is let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("receive", "called", "calling", "answer"),
    [
        ({}, "WRONG", "MODALITY", (1, 1, 7)),
        ({"check_called_ae": False}, "WRONG", "MODALITY", None),
        ({"check_calling_ae": True, "callers": [{"ae_title": "OTHER"}]}, "PACS_NODE", "MODALITY", (1, 1, 3)),
        ({"check_calling_ae": True, "callers": [{"ae_title": "MODALITY"}]}, "PACS_NODE", "MODALITY", None),
        (
            {"check_calling_ae": True, "callers": [{"ae_title": "MODALITY", "host": "127.0.0.9"}]},
            "PACS_NODE",
            "MODALITY",
            (1, 1, 3),
        ),
        (
            {
                "check_calling_ae": True,
                "callers": [
                    {"ae_title": "MODALITY", "host": "127.0.0.9"},
                    {"ae_title": "MODALITY", "host": "localhost"},
                ],
            },
            "PACS_NODE",
            "MODALITY",
            None,
        ),
        ({"min_free_disk_mb": 1 << 40}, "PACS_NODE", "MODALITY", (2, 3, 1)),
    ],
    ids=["called", "called-unchecked", "calling", "known", "known-elsewhere", "known-here", "disk"],
)
def test_associations_are_rejected_with_the_standard_codes(
    start: Start, receive: dict[str, object], called: str, calling: str, answer: tuple[int, int, int] | None
) -> None:
    running = start(**receive)
    association = running.associate(called, calling)
    if answer is None:
        assert association.is_established
        association.release()
    else:
        assert association.is_rejected
        reply = association.acceptor.primitive
        assert (reply.result, reply.result_source, reply.diagnostic) == answer


def test_the_association_limit_is_local_limit_exceeded_and_passes(start: Start) -> None:
    running = start(max_associations=2)
    held = [running.associate() for _ in range(2)]
    refused = running.associate()
    assert refused.is_rejected
    reply = refused.acceptor.primitive
    assert (reply.result, reply.result_source, reply.diagnostic) == (2, 3, 2)
    for association in held:
        association.release()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        again = running.associate()
        if again.is_established:
            break
        time.sleep(0.05)
    assert again.is_established
    again.release()


def test_a_reload_changes_the_rules_and_keeps_open_associations(
    start: Start, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    running = start()
    sent = write(tmp_path, radiograph())
    held = running.associate()
    running.receiver.reconfigure(
        changed(running.config, check_calling_ae=True, callers=[{"ae_title": "OTHER"}])
    )
    assert running.associate().is_rejected
    other = running.associate(calling="OTHER")
    assert other.is_established
    moved = free_port()
    running.receiver.reconfigure(changed(running.config, port=moved))
    assert running.port == moved
    newcomer = running.associate()
    assert newcomer.is_established
    for association in (held, other, newcomer):  # also those from before the move
        assert association.send_c_store(sent).Status == 0x0000
        association.release()


def test_a_reload_to_an_address_in_use_keeps_the_old_one(running: Running) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            running.receiver.reconfigure(changed(running.config, port=taken.getsockname()[1]))
    association = running.associate()
    assert association.is_established
    association.release()


# -- disk ------------------------------------------------------------------------------------------


def test_free_space_that_runs_out_during_an_association_is_a700_and_comes_back(
    running: Running, tmp_path: Path
) -> None:
    sent = write(tmp_path, radiograph())
    association = running.associate()
    running.receiver.reconfigure(changed(running.config, min_free_disk_mb=1 << 40))
    answer = association.send_c_store(sent)
    assert answer.Status == 0xA700
    assert "MB free" in answer.ErrorComment
    running.receiver.reconfigure(running.config)
    assert association.send_c_store(sent).Status == 0x0000
    association.release()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle_of_an_object_is_a700_and_leaves_nothing(
    start: Start, small_disk: Path, tmp_path: Path
) -> None:
    running = start(root=small_disk / "spool", min_free_disk_mb=0)
    large = write(tmp_path, radiograph(rows=2500, columns=2500), "large.dcm")  # 12.5 MB
    small = write(tmp_path, radiograph(), "small.dcm")
    association = running.associate()
    answer = association.send_c_store(large)
    assert answer.Status == 0xA700
    assert "space" in answer.ErrorComment
    assert not running.incoming()
    assert association.send_c_store(small).Status == 0x0000
    association.release()
    assert len(running.stored) == 1


def test_an_object_over_the_limit_is_a700_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    running = start(max_object_mb=1)
    association = running.associate()
    answer = association.send_c_store(write(tmp_path, radiograph(rows=1000, columns=1000)))
    assert answer.Status == 0xA700
    assert "larger than" in answer.ErrorComment
    assert association.send_c_store(write(tmp_path, radiograph())).Status == 0x0000
    association.release()
    assert not running.incoming()


# -- load and misbehaviour -------------------------------------------------------------------------


def test_a_large_object_does_not_grow_the_memory(running: Running, tmp_path: Path) -> None:
    sent = write(tmp_path, radiograph(rows=2500, columns=4000))  # 20,000,000 bytes of pixels
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for file in running.incoming():
                seen.extend(part.stat().st_size for part in file.glob("*.dcm"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    association = running.associate()
    began = time.monotonic()
    status = association.send_c_store(sent).Status
    seconds = time.monotonic() - began
    association.release()
    done.set()
    watcher.join()
    assert status == 0x0000
    (stored,) = running.stored
    assert data_set_bytes(stored.path) == data_set_bytes(sent)
    assert any(1_000_000 < size < 19_000_000 for size in seen), "the bytes should reach the disk as they come"
    assert seconds < 60


@pytest.mark.slow
def test_thirty_senders_at_once_lose_nothing(running: Running, tmp_path: Path) -> None:
    senders, each = 30, 4
    files = [
        [write(tmp_path, radiograph(rows=256, columns=256), f"{sender}-{n}.dcm") for n in range(each)]
        for sender in range(senders)
    ]

    def work(sender: int) -> list[int]:
        association = running.associate(calling=f"MODALITY{sender}")
        assert association.is_established
        statuses = [association.send_c_store(path).Status for path in files[sender]]
        association.release()
        return statuses

    with ThreadPoolExecutor(senders) as pool:
        results = list(pool.map(work, range(senders)))
    assert results == [[0x0000] * each] * senders
    assert len({stored.key for stored in running.stored}) == senders * each
    assert not running.incoming()


@pytest.mark.slow
def test_a_hundred_open_associations_cost_little_and_the_next_is_refused(
    start: Start, tmp_path: Path
) -> None:
    running = start(max_associations=100)
    held = []
    for _ in range(100):
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        held.append(connection)
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
    assert running.associate().is_rejected
    held.pop().close()
    before = time.process_time()
    time.sleep(3)
    # Polling as pynetdicom does takes all of a core; half of one leaves room for what else this process does.
    assert time.process_time() - before < 1.5
    association = running.associate()
    assert association.is_established
    assert association.send_c_store(write(tmp_path, radiograph())).Status == 0x0000
    association.release()
    for connection in held:
        connection.close()


def test_two_senders_of_the_same_object_get_one_file(running: Running, tmp_path: Path) -> None:
    sent = write(tmp_path, radiograph(rows=500, columns=500))
    associations = [running.associate(calling=f"M{n}") for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda association: association.send_c_store(sent).Status, associations))
    for association in associations:
        association.release()
    assert statuses == [0x0000] * 6
    assert len({stored.key for stored in running.stored}) == 1
    assert sum(not stored.repeated for stored in running.stored) == 1
    assert not running.incoming()


def associate_request(pdu_length: int = 16384) -> bytes:
    """An A-ASSOCIATE-RQ for CR in Explicit VR Little Endian, by hand (PS3.8 9.3.2)."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = item(
        0x20,
        struct.pack(">BBBB", 1, 0, 0, 0)
        + item(0x30, ComputedRadiographyImageStorage.encode())
        + item(0x40, ExplicitVRLittleEndian.encode()),
    )
    user = item(0x50, item(0x51, struct.pack(">L", pdu_length)) + item(0x52, b"1.2.3"))
    body = (
        struct.pack(">HH", 1, 0)
        + b"PACS_NODE".ljust(16)
        + b"RAW".ljust(16)
        + b"\0" * 32
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + context
        + user
    )
    return struct.pack(">BBL", 1, 0, len(body)) + body


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = connection.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return 0, b""
    kind, _, length = struct.unpack(">BBL", head)
    return kind, connection.recv(length, socket.MSG_WAITALL)


def store_command(sop_instance: str, data_set: int = 1) -> bytes:
    """The P-DATA-TF PDU of a C-STORE-RQ command set."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = (
        element(0x0002, ComputedRadiographyImageStorage.encode())
        + element(0x0100, struct.pack("<H", 1))
        + element(0x0110, struct.pack("<H", 1))
        + element(0x0700, struct.pack("<H", 2))
        + element(0x0800, struct.pack("<H", data_set))
        + element(0x1000, sop_instance.encode())
    )
    return p_data(element(0x0000, struct.pack("<L", len(body))) + body, 0x03)


def p_data(fragment: bytes, control: int) -> bytes:
    value = struct.pack(">LBB", len(fragment) + 2, 1, control) + fragment
    return struct.pack(">BBL", 4, 0, len(value)) + value


@pytest.mark.parametrize("end", ["reset", "abort", "half-pdu"])
def test_a_sender_that_dies_in_the_middle_leaves_nothing_and_no_job(
    running: Running, tmp_path: Path, end: str
) -> None:
    body = data_set_bytes(write(tmp_path, radiograph(rows=400, columns=400)))
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
        connection.sendall(store_command("1.2.3.4"))
        connection.sendall(p_data(body[:16000], 0x00))
        deadline = time.monotonic() + 60
        while not running.incoming() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.incoming(), "the object should be arriving"
        if end == "abort":
            connection.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))
        elif end == "half-pdu":
            connection.sendall(p_data(body[16000:32000], 0x00)[:5000])
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 60
    while running.incoming() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running.incoming()
    assert running.stored == []
    association = running.associate()
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_a_pdu_of_an_absurd_length_ends_the_connection(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
        connection.sendall(struct.pack(">BBL", 4, 0, 0xFFFF_FFF0) + b"x" * 100)
        assert read_pdu(connection)[0] in (0, 7)


def test_a_sender_that_stops_in_the_middle_of_a_pdu_is_dropped(start: Start) -> None:
    running = start(timeouts={"acse": 2.0, "dimse": 0.5, "network": 1.0})
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
        began = time.monotonic()
        connection.sendall(store_command("1.2.3.4")[:20])
        assert read_pdu(connection)[0] in (0, 7)
        assert time.monotonic() - began < 30


def test_a_command_set_without_end_is_aborted(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
        with suppress(OSError):
            for _ in range(200):
                connection.sendall(p_data(b"\0" * 10_000, 0x01))
        assert read_pdu(connection)[0] == 7  # A-ABORT


def test_a_request_without_a_data_set_is_c000(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(associate_request())
        assert read_pdu(connection)[0] == 2
        connection.sendall(store_command("1.2.3.4", data_set=0x0101))
        kind, answer = read_pdu(connection)
    assert kind == 4
    assert struct.pack("<HHLH", 0, 0x0900, 2, 0xC000) in answer


@pytest.mark.slow
def test_http_and_noise_on_the_port_do_no_harm(running: Running) -> None:
    for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", os.urandom(2000), b""):
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
            connection.sendall(noise)
    association = running.associate()
    assert association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.slow
def test_the_log_tells_who_how_much_and_how_long_but_no_patient(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    dataset = radiograph()
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-ID"
    dataset.PatientBirthDate = "19610203"
    association = running.associate()
    association.send_c_store(write(tmp_path, dataset))
    association.release()
    deadline = time.monotonic() + 60
    while "released" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "association from MODALITY@127.0.0.1 released: 1 object(s) stored, 0 failed" in caplog.text
    for secret in ("Secret", "SECRET", "19610203"):
        assert secret not in caplog.text
