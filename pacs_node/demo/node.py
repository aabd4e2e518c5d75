"""The node of the demonstration: ``pacs-node serve`` in a process, with its own configuration and state."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from pathlib import Path

from pynetdicom import AE
from pynetdicom.sop_class import Verification
from ruamel.yaml import YAML

from pacs_node.errors import PacsNodeError
from pacs_node.tasks import Task

AE_TITLE = "PACS_NODE"
READY_SECONDS, STOP_SECONDS = 60.0, 20.0
QUIET_SECONDS = 1.0
TAIL_LINES = 15
#: The supervisor starts a process that died again; after so many deaths it will not get better.
MAX_DEATHS = 3


class NodeFailedError(PacsNodeError):
    """The node did not start, or died; the text ends with the last lines of its log."""

    def __init__(self, what: str, log: Path, remedy: str) -> None:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
        quoted = "\n".join(f"  | {line}" for line in tail) or "  | (empty)"
        super().__init__(f"{what}. {remedy}\nThe end of {log}:\n{quoted}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(state: Path, port: int, archive_ae: str, archive_port: int) -> dict[str, object]:
    """What stands in the node's pacs-node.yaml: every object through every task, all of it to the archive."""
    return {
        "node": {"ae_title": AE_TITLE, "state_dir": str(state)},
        "receive": {"host": "127.0.0.1", "port": port, "min_free_disk_mb": 200},
        "study": {"quiet_seconds": QUIET_SECONDS},
        "destinations": {
            "archive": {"type": "dicom", "ae_title": archive_ae, "host": "127.0.0.1", "port": archive_port}
        },
        "rules": [
            {
                "name": "everything",
                "tasks": [task.value for task in Task],
                "destinations": ["archive"],
                "forward_original": True,
            }
        ],
        "deliver": {"retry": {"first_seconds": 1.0, "max_seconds": 10.0, "attempts": 5}},
    }


class RunningNode:
    """The node from `start` to `stop`. ``folder`` takes its configuration and state, ``log`` its log."""

    def __init__(self, folder: Path, log: Path, archive_ae: str, archive_port: int) -> None:
        self.log, self.port = log, free_port()
        self.config_path = folder / "pacs-node.yaml"
        text = io.StringIO()
        YAML().dump(configuration(folder / "state", self.port, archive_ae, archive_port), text)
        self.config_path.write_text(text.getvalue(), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers C-ECHO. Raises NodeFailedError; nothing is left running then."""
        command = [sys.executable, "-m", "pacs_node", "serve", "--config", str(self.config_path)]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C comes here, and it is ended in order from here.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End it and what it has started."""
        if self._process is None:
            return
        self.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Its receiver and worker notice that it is gone, and end.
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises NodeFailedError if the node, or a process of it again and again, has died."""
        assert self._process is not None  # noqa: S101  started
        code = self._process.poll()
        if code is not None:
            raise NodeFailedError(
                f"the node ended by itself (exit code {code})", self.log, "Correct what its log says"
            )
        deaths = self.log.read_bytes().count(b"ended by itself")
        if deaths >= MAX_DEATHS:
            raise NodeFailedError(
                f"a process of the node died {deaths} times", self.log, "Correct what its log says"
            )

    def _wait_until_ready(self) -> None:
        ae = AE("MODALITY")
        ae.add_requested_context(Verification)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 5
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self.check()
            if self._listens():
                association = ae.associate("127.0.0.1", self.port, ae_title=AE_TITLE)
                if association.is_established:
                    status = association.send_c_echo()
                    association.release()
                    if status.get("Status") == 0:
                        return
            time.sleep(0.1)
        raise NodeFailedError(
            f"the node did not answer on port {self.port} within {READY_SECONDS:.0f} s",
            self.log,
            "Free that port or end what keeps this machine busy, and try again",
        )

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
