"""A DICOMweb process of the node on a free port, and what talks to it."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from tests.conftest import unused_port
from tests.pipeline.harness import Bench

ROOT = Path(__file__).resolve().parents[2]
WAIT = 120.0
BOUNDARY = "the-boundary"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def part10(dataset: Dataset) -> bytes:
    """A data set as a file in its own transfer syntax."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def body(*parts: bytes, content_type: str = "application/dicom") -> bytes:
    """Parts as one multipart body."""
    head = f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


class Served(Bench):
    """A node whose DICOMweb process runs."""

    def __init__(self, folder: Path, port: int, **changes: Any) -> None:
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        super().__init__(folder, changes)

    def configure(self, **changes: Any) -> None:
        web = {"port": self.port, **changes.pop("web", {})}
        super().configure(web=web, **changes)

    @property
    def log(self) -> str:
        return (self.folder / "web.log").read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        with (self.folder / "web.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pacs_node.dicomweb.server", "--config", str(self.config_path)],
                cwd=ROOT,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        self.until(lambda: self.get("/studies?limit=1")[0] in (200, 401), "the server")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert self.process is not None
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.log}"
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def peak_memory_mb(self) -> float:
        """The most memory that the process has had."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def ask(
        self, method: str, path: str, content: Any = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers (names in lower case) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, "/dicom-web" + path, content, names)
            response = connection.getresponse()
            found = response.read()
            return response.status, found, {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        return self.ask("GET", path, None, **headers)

    def post(self, content: Any, path: str = "/studies", kind: str = TYPE) -> tuple[int, dict[str, Any]]:
        """STOW-RS: status and JSON."""
        status, found, _ = self.ask("POST", path, content, Content_Type=kind)
        return status, json.loads(found)

    @property
    def web(self) -> DICOMwebClient:
        return DICOMwebClient(self.url)


@pytest.fixture
def serve(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., Served]]:
    """``serve(**changes)`` starts a node's DICOMweb process with these sections of the configuration."""
    started: list[Served] = []

    def start(environment: dict[str, str] | None = None, **changes: Any) -> Served:
        served = Served(tmp_path / f"node{len(started)}", free_port())
        served.configure(**changes)
        served.environment = environment or {}
        started.append(served)
        served.start()
        return served

    yield start
    for served in started:
        if served.process is not None and served.process.poll() is None:
            served.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One node for the tests that only add to it, without a worker."""
    served = Served(tmp_path_factory.mktemp("shared") / "node", unused_port())
    served.configure()
    served.start()
    yield served
    assert served.stop() == 0
    assert "Traceback" not in served.log
    assert "request failed" not in served.log
    for secret in ("Phantom", "PHANTOM", "Gildong"):
        assert secret not in served.log
