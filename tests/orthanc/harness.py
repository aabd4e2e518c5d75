"""A real Orthanc with the plugin on loopback ports, and what a test does to it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.dicom.identity import is_own_result
from tests.pipeline.harness import MODELS, TASKS

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = Path("/usr/share/orthanc/plugins")
USER, PASSWORD = "node", "secret"
WAIT = 240.0


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    """Orthanc's section "PacsNode" with the tiny models and one rule for everything."""
    return {
        "python": sys.executable,
        "node": {"state_dir": str(folder / "state")},
        "receive": {"min_free_disk_mb": 1},
        "study": {"quiet_seconds": 1.0},
        "models": {
            "folders": [str(MODELS)],
            "bone_suppression": "tiny-bone",
            "restoration": "tiny-restoration",
            "anomaly": "tiny-anomaly",
        },
        "infer": {"threads": 1},
        "rules": [{"name": "all", "tasks": TASKS, "destinations": ["ORTHANC"]}],
        "deliver": {"retry": {"first_seconds": 0.5, "max_seconds": 1.0, "attempts": 1000}},
        **changes,
    }


def until(condition: Callable[[], Any], what: Any = "", seconds: float = WAIT) -> Any:
    """What the condition gives once it is true; an AssertionError with ``what`` if it never is."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        assert time.monotonic() < deadline, f"waited in vain: {what() if callable(what) else what}"
        time.sleep(0.1)


class Orthanc:
    """An Orthanc in a folder of its own. Starts again with the same ports, storage and state."""

    def __init__(self, tool: str, folder: Path, http: int, dicom: int, plugin: bool = True) -> None:
        self.tool, self.folder, self.http, self.dicom = tool, folder, http, dicom
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, Any] = {
            "Name": "Test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "HttpPort": http,
            "DicomPort": dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": {}},
        }
        if plugin:
            self.settings["Plugins"].append(str(PLUGINS / "libOrthancPython.so"))
            self.settings["PythonScript"] = str(ROOT / "orthanc" / "plugin.py")
            self.settings["PacsNode"] = section(folder)

    # -- the process -----------------------------------------------------------------------------------------

    def start(self) -> Orthanc:
        """Start it, and wait until its REST API answers."""
        (self.folder / "orthanc.json").write_text(json.dumps(self.settings))
        with self.log_path.open("ab") as log:
            command = [self.tool, str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self._alive() and self.get("/system"), lambda: self.log)
        return self

    def _alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Orthanc has ended:\n{self.log}"
        return True

    def ask_to_end(self) -> None:
        """Begin to end it, if it runs: several end sooner together."""
        if self.process is not None:
            self.process.terminate()

    def stop(self) -> float:
        """End it as an administrator would; the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(WAIT) == 0
        return time.monotonic() - began

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.stop()
            if self.process.poll() is None:
                self.kill()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    # -- REST ------------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """The answer, JSON decoded; urllib's HTTPError if the status is not 200."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}", data=body, method=method, headers=headers
        )
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers.get_content_type().endswith("json") else content

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def post(self, path: str, body: Any = b"") -> Any:
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def upload(self, dataset: Dataset) -> dict[str, Any]:
        """Store by REST, as Orthanc Explorer's upload does."""
        answer = self.post("/instances", part10(dataset))
        assert isinstance(answer, dict)
        return answer

    def status(self) -> dict[str, Any]:
        """The node's own status."""
        answer = self.get("/pacs-node/status")
        assert isinstance(answer, dict)
        return answer

    def jobs(self, prefix: str = "", **query: str) -> list[dict[str, Any]]:
        """The node's jobs."""
        answer = self.get(
            "/pacs-node/jobs?" + urllib.parse.urlencode({"prefix": prefix, "limit": "1000", **query})
        )
        assert isinstance(answer, list)
        return answer

    def ready(self) -> Orthanc:
        """Wait until the node answers under /pacs-node/."""
        until(self.status, lambda: self.log)
        return self

    # -- what it holds ---------------------------------------------------------------------------------------

    def instances(self, study_instance_uid: str) -> list[Dataset]:
        """The headers of a study's instances."""
        found = self.post(
            "/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": study_instance_uid}}
        )
        headers = []
        for instance in found:
            content = self.get(f"/instances/{instance}/file")
            # Orthanc keeps an upload as it came, with or without a preamble.
            headers.append(dcmread(io.BytesIO(content), stop_before_pixels=True, force=True))
        return headers

    def results(self, study_instance_uid: str) -> list[Dataset]:
        """Those that a node has made."""
        return [header for header in self.instances(study_instance_uid) if is_own_result(header)]

    def wait_for_results(self, study_instance_uid: str, number: int = len(TASKS) + 1) -> list[Dataset]:
        """The results once there are so many, which must then be of different UIDs."""
        found = until(
            lambda: (r := self.results(study_instance_uid)) and len(r) >= number and r,
            lambda: f"{number} results\n{self.log[-6000:]}",
        )
        assert len(found) == number
        assert len({header.SOPInstanceUID for header in found}) == number
        return list(found)

    def idle(self) -> None:
        """Wait until everything stored is read and no job is unfinished."""

        def done() -> bool:
            status = self.status()
            return status["changes"]["read"] == status["changes"]["last"] and not status["jobs"]["unfinished"]

        until(done, lambda: f"{self.status()}\n{self.log[-6000:]}")


def part10(dataset: Dataset) -> bytes:
    """The object as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def processes_of(parent: int) -> list[int]:
    """The children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += map(int, (task / "children").read_text().split())
    return found


def ended(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def kill(pid: int) -> None:
    """End a process as a crash would."""
    os.kill(pid, signal.SIGKILL)
