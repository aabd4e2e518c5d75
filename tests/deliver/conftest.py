"""Real destinations: DCMTK's storescp and an Orthanc with its DICOMweb plugin, on loopback ports."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import absent, unused_port
from tests.pipeline.harness import listens

PLUGINS = Path("/usr/share/orthanc/plugins")
USER, PASSWORD = "node", "secret"


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc; ``get`` reads its REST interface."""

    http: int
    dicom: int
    folder: Path

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}")
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers.get_content_type().endswith("json") else body

    def file_of(self, sop_instance_uid: str) -> bytes | None:
        """The instance as Orthanc keeps it."""
        for instance in self.get("/instances?expand"):
            if instance["MainDicomTags"]["SOPInstanceUID"] == sop_instance_uid:
                body = self.get(f"/instances/{instance['ID']}/file")
                assert isinstance(body, bytes)
                return body
        return None


@pytest.fixture(scope="session")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], str]
) -> Iterator[Orthanc]:
    """One Orthanc for all tests of the session (it takes seconds to start and to stop)."""
    tool = require_tool("Orthanc")
    plugin = PLUGINS / "libOrthancDicomWeb.so"
    if not plugin.exists():
        absent("orthanc-dicomweb is not installed (make system-tools)")
    folder = tmp_path_factory.mktemp("orthanc")
    started = Orthanc(unused_port(), unused_port(), folder)
    configuration = {
        "Name": "Test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "HttpPort": started.http,
        "DicomPort": started.dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAlwaysAllowStore": True,
        "OverwriteInstances": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([tool, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait(lambda: bool(started.get("/system")), process, folder / "log")
            yield started
        finally:
            process.terminate()
            process.wait(timeout=120)


@dataclass
class StoreScp:
    """DCMTK's storescp; what it has received lies in ``folder``."""

    port: int
    folder: Path

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def storescp(tmp_path: Path, require_tool: Callable[[str], str]) -> Iterator[Callable[..., StoreScp]]:
    """``storescp(*options)`` starts one."""
    tool = require_tool("storescp")
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str, port: int | None = None) -> StoreScp:
        folder = tmp_path / f"storescp-{len(running)}"
        folder.mkdir()
        scp = StoreScp(port or unused_port(), folder)
        command = [tool, "-aet", "STORESCP", "-od", str(folder), *options, str(scp.port)]
        process = subprocess.Popen(command)
        running.append(process)
        _wait(lambda: listens(scp.port), process, None)
        return scp

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=120)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path | None) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail(f"it does not start: {log.read_text() if log else process.args}")
