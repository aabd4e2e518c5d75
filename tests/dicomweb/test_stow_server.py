"""STOW-RS against the running process: what is stored is reported, what is not says why."""

from __future__ import annotations

import http.client
import io
import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from pacs_node.receive.spool import uid_hash
from tests.dicom_objects import radiograph
from tests.dicomweb.conftest import BOUNDARY, TYPE, Served, body, part10
from tests.pipeline.conftest import chest

FAILED, STORED, OTHERS = "00081198", "00081199", "0008119A"


def reasons(answer: dict[str, Any], sequence: str = FAILED) -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.get(sequence, {}).get("Value", [])]


def uids(answer: dict[str, Any], sequence: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.get(sequence, {}).get("Value", [])]


def spooled(served: Served) -> set[str]:
    spool = served.node.spool
    return {
        spool.metadata(key)["sop_instance_uid"] for study in spool.studies() for key in spool.objects(study)
    }


def arriving(served: Served) -> list[Any]:
    return list((served.node.spool.root / "incoming").glob("*/*"))


def test_what_is_stored_is_in_the_spool_with_its_job_and_can_be_fetched(shared: Served) -> None:
    first, second = chest(1, 11), chest(2, 11)
    status, answer = shared.post(body(part10(first), part10(second)))
    assert status == 200
    assert uids(answer, STORED) == [first.SOPInstanceUID, second.SOPInstanceUID]
    assert FAILED not in answer
    assert answer["00081190"]["Value"] == [f"{shared.url}/studies/{first.StudyInstanceUID}"]
    assert {first.SOPInstanceUID, second.SOPInstanceUID} <= spooled(shared)
    keys = [key for study in shared.node.spool.studies() for key in shared.node.spool.objects(study)]
    assert {f"object/{key}" for key in keys} <= shared.jobs().keys()
    # What it says is where it can be had.
    url = answer[STORED]["Value"][0]["00081190"]["Value"][0]
    retrieved = shared.web.retrieve_instance(
        first.StudyInstanceUID, first.SeriesInstanceUID, first.SOPInstanceUID
    )
    assert retrieved.PixelData == first.PixelData
    assert (
        url
        == f"{shared.url}/studies/{first.StudyInstanceUID}/series/{first.SeriesInstanceUID}/instances/"
        + (first.SOPInstanceUID)
    )

    # Again: reported as stored, once in the spool. Other content under the UID: kept beside it.
    study = uid_hash(first.StudyInstanceUID)
    assert shared.post(body(part10(first)))[0] == 200
    assert len(shared.node.spool.objects(study)) == 2
    first.PatientComments = "other"
    assert shared.post(body(part10(first)))[0] == 200
    assert len(shared.node.spool.objects(study)) == 3
    assert len(shared.web.search_for_instances(first.StudyInstanceUID)) == 2


def test_dicomweb_client_stores(shared: Served) -> None:
    image = dcmread(io.BytesIO(part10(radiograph(seed=3))))
    answer = shared.web.store_instances([image])
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert image.SOPInstanceUID in spooled(shared)


def test_a_request_to_a_study_takes_only_its_instances(shared: Served) -> None:
    mine, other = chest(1, 12), chest(1, 13)
    status, answer = shared.post(body(part10(mine), part10(other)), f"/studies/{mine.StudyInstanceUID}")
    assert (status, uids(answer, STORED), uids(answer, FAILED)) == (
        202,
        [mine.SOPInstanceUID],
        [other.SOPInstanceUID],
    )
    assert reasons(answer) == [0xA900]
    assert other.SOPInstanceUID not in spooled(shared)
    assert shared.post(body(part10(other)), f"/studies/{mine.StudyInstanceUID}")[0] == 409


def damaged(change: Callable[[Dataset], None], data: Callable[[bytes], bytes] = lambda data: data) -> bytes:
    dataset = radiograph(seed=5)
    change(dataset)
    return data(part10(dataset))


def set_to(keyword: str, value: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        dataset[keyword]._value = value

    return change


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("part", "reason", "named"),
    [
        (b"not dicom at all" * 20, 0xC000, False),
        (b"", 0xC000, False),
        (b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff" + b"x" * 100, 0xC000, False),
        (b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x10\x00\x00\x00" + b"\xff" * 40, 0xC000, False),
        (damaged(lambda ds: None, lambda data: data[:200]), 0xC000, False),
        (
            damaged(lambda ds: None, lambda data: data[: data.index(b"\x08\0\x16\0")] + b"\xff" * 400),
            0xC000,
            True,
        ),
        (damaged(set_to("StudyInstanceUID", "../../../etc/passwd")), 0xC000, True),
        (damaged(set_to("SeriesInstanceUID", "1.2/../3")), 0xC000, True),
        (damaged(lambda ds: delattr(ds, "StudyInstanceUID")), 0xC000, True),
        (damaged(lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")), 0x0122, True),
        (
            damaged(lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian)).replace(
                b"1.2.840.10008.1.2\0", b"1.2.840.10008.9.2\0"
            ),
            0xC122,
            True,
        ),
    ],
)
def test_an_instance_that_cannot_be_taken_does_not_keep_out_the_others(
    shared: Served, part: bytes, reason: int, named: bool
) -> None:
    good = radiograph(seed=6)
    status, answer = shared.post(body(part, part10(good)))
    assert status == 202
    assert reasons(answer, FAILED if named else OTHERS) == [reason]
    assert uids(answer, STORED) == [good.SOPInstanceUID]
    before = spooled(shared)
    assert shared.post(body(part))[0] == 409
    assert spooled(shared) == before
    assert arriving(shared) == []


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/dicom", 415),
        ("text/plain", 415),
        ("", 415),
        ('multipart/related; type="application/dicom+json"; boundary=x', 415),
        ('multipart/related; type="application/dicom"', 400),
        (f'multipart/related; type="application/dicom"; boundary={"x" * 80}', 400),
        (TYPE, 400),
    ],
)
def test_what_is_no_such_request_is_said(shared: Served, kind: str, status: int) -> None:
    found, answer = shared.post(b"nothing of the kind", kind=kind)
    assert found == answer["status"] == status
    assert answer["reason"]
    assert answer["remedy"]


def test_a_multipart_that_breaks_off_stores_what_was_whole(shared: Served) -> None:
    whole, cut = radiograph(seed=7), radiograph(seed=8)
    content = body(part10(whole), part10(cut))
    status, answer = shared.post(content[: len(content) - 3000])
    assert (status, uids(answer, STORED)) == (202, [whole.SOPInstanceUID])
    assert reasons(answer, OTHERS) == [0xC000]
    assert cut.SOPInstanceUID not in spooled(shared)
    only_cut = body(part10(cut))
    assert shared.post(only_cut[: len(only_cut) - 3000])[0] == 400
    assert cut.SOPInstanceUID not in spooled(shared)
    assert arriving(shared) == []


def test_a_sender_that_vanishes_leaves_nothing_behind(shared: Served) -> None:
    gone = radiograph(seed=9)
    content = body(part10(gone))
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        connection.sendall(
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content[:4000]
        )
    shared.until(lambda: "the client has gone" in shared.log, "the end of the request")
    assert gone.SOPInstanceUID not in spooled(shared)
    assert arriving(shared) == []


@pytest.mark.slow
def test_bounds(serve: Callable[..., Served]) -> None:
    """Of a request, of an instance, of the parts, of the time, and of the disk."""
    served = serve(
        web={"max_request_mb": 3, "timeout": 1.0}, receive={"max_object_mb": 1, "min_free_disk_mb": 1}
    )
    small, large = radiograph(), radiograph(rows=1024, columns=600)
    status, answer = served.post(body(part10(large), part10(small)))
    assert (status, reasons(answer), uids(answer, STORED)) == (202, [0xA700], [small.SOPInstanceUID])

    # Said before anything is sent.
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/dicom-web/studies")
    connection.putheader("Content-Type", TYPE)
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "max_request_mb" in json.loads(response.read())["reason"]
    connection.close()

    # Of unknown length: cut off, and what was stored until then is reported.
    def endless() -> Iterator[bytes]:
        yield body(part10(radiograph(seed=11)))[: -len(BOUNDARY) - 6]
        yield f"--{BOUNDARY}\r\n\r\n".encode()
        for _ in range(30):
            yield b"x" * (1 << 17)

    status, answer = served.post(endless())
    assert (status, len(uids(answer, STORED)), reasons(answer, OTHERS)) == (202, 1, [0xA700])

    status, answer = served.post(f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 100_000)
    assert (status, answer.get("status")) == (413, 413)
    assert len(served.log) < 100_000

    # A sender that stops in the middle.
    with socket.create_connection(("127.0.0.1", served.port)) as stalled:
        stalled.sendall(
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE}\r\n"
            "Content-Length: 9999\r\n\r\n".encode()
        )
        stalled.settimeout(60)
        assert b" 408 " in stalled.recv(4096).splitlines()[0]

    served.stop()
    served.configure(receive={"min_free_disk_mb": 1 << 40})
    served.start()
    status, answer = served.post(body(part10(small)))
    assert (status, reasons(answer)) == (409, [0xA700])
    assert arriving(served) == []


@pytest.mark.slow
def test_a_large_instance_takes_no_memory(serve: Callable[..., Served]) -> None:
    served = serve(receive={"max_object_mb": 128, "min_free_disk_mb": 1})
    assert served.post(body(part10(radiograph(seed=1))))[0] == 200
    before = served.peak_memory_mb()
    image = radiograph(seed=2)
    image.PixelData = bytes(96 << 20)
    assert served.post(body(part10(image)))[0] == 200
    assert served.peak_memory_mb() - before < 32
    series = f"/studies/{image.StudyInstanceUID}/series/{image.SeriesInstanceUID}"
    path = f"{series}/instances/{image.SOPInstanceUID}"
    path = f"{series}/instances/{image.SOPInstanceUID}"
    assert len(served.get(path, Accept="application/dicom")[1]) > 96 << 20
    assert served.peak_memory_mb() - before < 32


def test_an_instance_whose_job_cannot_be_queued_is_not_reported_as_stored(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    first, second = radiograph(seed=1), radiograph(seed=2)
    assert served.post(body(part10(first)))[0] == 200
    with sqlite3.connect(served.node.state_dir / "jobs.db") as database:
        database.execute("alter table workflow_status rename to away")
    database.close()
    status, answer = served.post(body(part10(second)))
    assert (status, reasons(answer)) == (409, [0xA700])
    with sqlite3.connect(served.node.state_dir / "jobs.db") as database:
        database.execute("alter table away rename to workflow_status")
    database.close()
    assert served.post(body(part10(second)))[0] == 200
    assert len([job for job in served.jobs() if job.startswith("object/")]) == 2
