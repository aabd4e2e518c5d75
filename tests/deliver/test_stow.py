"""STOW-RS to Orthanc, and to servers that fail in every way that PS3.18 and HTTP know."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest

from pacs_node.config.model import StowDestination as Settings
from pacs_node.deliver import Destination, open_destination
from pacs_node.errors import DeliveryError
from tests.deliver.conftest import PASSWORD, USER, Orthanc
from tests.dicom_objects import ENCODERS, data_set_bytes, radiograph, write, write_in


def to(url: str, **more: Any) -> Destination:
    settings = Settings.model_validate({"type": "stow", "url": url, "timeout": 5.0, **more})
    return open_destination("WEB", settings, "PACS_NODE")


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("PACS_NODE_TEST_PASSWORD", PASSWORD)
    return {"username": USER, "password_env": "PACS_NODE_TEST_PASSWORD"}


def test_orthanc_stores_every_transfer_syntax_and_finds_it_by_qido(
    orthanc: Orthanc, login: dict[str, str], tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    destination = to(orthanc.dicomweb, **login)
    assert "QIDO" in destination.echo()
    files = [write_in(tmp_path, syntax, require_tool) for syntax in ENCODERS]
    destination.send(files)
    for path in files:
        sent = pydicom.dcmread(path)
        (found,) = orthanc.get(f"/dicom-web/instances?SOPInstanceUID={sent.SOPInstanceUID}")
        assert found["0020000D"]["Value"] == [sent.StudyInstanceUID]
        kept = orthanc.file_of(sent.SOPInstanceUID)
        assert kept is not None
        copy = tmp_path / "copy.dcm"
        copy.write_bytes(kept)
        assert data_set_bytes(copy) == data_set_bytes(path)


def test_the_same_object_twice_is_delivered_twice(
    orthanc: Orthanc, login: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path, radiograph())
    for _ in range(2):
        to(orthanc.dicomweb, **login).send([path])
    assert (
        len(orthanc.get(f"/dicom-web/instances?SOPInstanceUID={pydicom.dcmread(path).SOPInstanceUID}")) == 1
    )


def test_orthanc_without_a_password_is_permanent(orthanc: Orthanc, tmp_path: Path) -> None:
    path = write(tmp_path, radiograph())
    for attempt in (to(orthanc.dicomweb).echo, lambda: to(orthanc.dicomweb).send([path])):
        with pytest.raises(DeliveryError, match="HTTP 401") as failed:
            attempt()
        assert not failed.value.transient


def test_a_wrong_path_is_permanent(orthanc: Orthanc, login: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="Check the url") as failed:
        to(f"http://127.0.0.1:{orthanc.http}/nothing", **login).send([write(tmp_path, radiograph())])
    assert not failed.value.transient


def test_an_object_that_orthanc_refuses_is_named(
    orthanc: Orthanc, login: dict[str, str], tmp_path: Path
) -> None:
    bad, good = radiograph(), write(tmp_path, radiograph(), "good.dcm")
    del bad.StudyInstanceUID, bad.SeriesInstanceUID, bad.PatientID
    path = write(tmp_path, bad, "bad.dcm")
    content = path.read_bytes()
    path.write_bytes(
        content[: content.index(b"\x10\x00\x10\x00PN")]
    )  # ends after the UIDs: no pixels, no patient
    with pytest.raises(DeliveryError, match=bad.SOPInstanceUID) as failed:
        to(orthanc.dicomweb, **login).send([path, good])
    assert pydicom.dcmread(good).SOPInstanceUID not in str(failed.value)
    assert orthanc.file_of(pydicom.dcmread(good).SOPInstanceUID) is not None


def test_a_password_that_is_not_set_is_permanent_and_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="PACS_NODE_NOT_SET") as failed:
        to("http://127.0.0.1:9", username="x", password_env="PACS_NODE_NOT_SET").send([])
    assert not failed.value.transient


# -- servers that answer what a test wants ---------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers, body))  # type: ignore[attr-defined]
        status, answer = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def server(status: int, answer: Any) -> Iterator[tuple[str, list[Any]]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.answer = status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()  # type: ignore[attr-defined]
        http.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/dicom-web", http.requests  # type: ignore[attr-defined]
        finally:
            http.shutdown()
            thread.join()


def response(uid: str, *, failed: int | None = None, stored: int | None = None) -> dict[str, Any]:
    """A store response (PS3.18 10.5.3) with a failed or a stored instance; 0 stands for no reason."""

    def sequence(tag: str, reason: int) -> dict[str, Any]:
        item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
        if reason:
            item[tag] = {"vr": "US", "Value": [reason]}
        return {"vr": "SQ", "Value": [item]}

    answer: dict[str, Any] = {}
    if failed is not None:
        answer["00081198"] = sequence("00081197", failed)
    if stored is not None:
        answer["00081199"] = sequence("00081196", stored)
    return answer


UID = "1.2.3.4.5"


@pytest.mark.parametrize(
    ("status", "answer", "outcome", "words"),
    [
        (200, response(UID, stored=0), None, ""),
        (200, [response(UID, stored=0)], None, ""),
        (200, b"", None, ""),
        (202, response(UID, stored=0xB000), None, ""),
        (409, response(UID, failed=0x0111), None, ""),
        (202, response(UID, failed=0xA700), True, "0xA700 out of resources"),
        (202, response(UID, failed=0x0122), False, "0x0122 SOP class not supported"),
        (200, response(UID, failed=0xC000), False, "cannot be understood"),
        (202, response(UID, failed=0), True, "no Failure Reason"),
        (202, b"<xml/>", True, "does not list"),
        (200, response("9.9", stored=0), True, "does not list"),
        (409, response(UID, failed=0xA900), False, "0xA900 the data set does not match"),
        (409, b"", False, "HTTP 409"),
        (400, b"{}", False, "HTTP 400"),
        (403, b"", False, "not let in"),
        (404, b"", False, "Check the url"),
        (301, b"", False, "redirected"),
        (413, b"", False, "too large"),
        (429, b"", True, "HTTP 429"),
        (500, b"[[[", True, "HTTP 500"),
        (503, b"", True, "HTTP 503"),
        (200, {"00081198": {"Value": "x"}, "00081199": [1]}, None, ""),
    ],
)
def test_answers(tmp_path: Path, status: int, answer: Any, outcome: bool | None, words: str) -> None:
    path = write(tmp_path, radiograph(sop_instance_uid=UID))
    with server(status, answer) as (url, requests):
        if outcome is None:
            to(url).send([path])
        else:
            with pytest.raises(DeliveryError, match=words) as failed:
                to(url).send([path])
            assert failed.value.transient is outcome
            assert UID in str(failed.value)
    ((headers, body),) = requests
    kind, boundary = headers["Content-Type"].split("; boundary=")
    assert kind == 'multipart/related; type="application/dicom"'
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    assert body == head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()


def test_a_token_goes_in_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACS_NODE_TEST_TOKEN", "abc.def")
    with server(200, b"") as (url, requests):
        to(url, token_env="PACS_NODE_TEST_TOKEN").send([write(tmp_path, radiograph())])
    assert requests[0][0]["Authorization"] == "Bearer abc.def"


def test_nobody_there_is_transient(tmp_path: Path, free_port: Callable[[], int]) -> None:
    destination = to(f"http://127.0.0.1:{free_port()}/dicom-web")
    for attempt in (destination.echo, lambda: destination.send([write(tmp_path, radiograph())])):
        with pytest.raises(DeliveryError, match="no connection") as failed:
            attempt()
        assert failed.value.transient
