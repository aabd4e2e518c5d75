"""A node in a folder of its own, and its worker in processes that can be killed at any step boundary.

The worker is the real one. To be killed at an exact point, it runs in a child process in which ``Run.step``
and ``Run.enqueue`` are wrapped; the production code knows nothing of that. Children are forked from a server
process that has imported everything, so that each costs a fraction of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydicom.dataset import Dataset

from pacs_node.config import load
from pacs_node.engine.client import Client
from pacs_node.engine.job import UNFINISHED, Job, NewJob
from pacs_node.pipeline.node import INTAKE_QUEUE, OBJECT, Node
from pacs_node.receive.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "infer" / "fixtures" / "models"
TASKS = ["bone_suppression", "restoration", "anomaly"]
WAIT = 240.0

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pacs_node.pipeline.worker", "cv2", "onnxruntime", "pacs_node.deliver.dimse"])


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration with the tiny models, one rule for everything, and one folder as destination."""
    return {
        "node": {"state_dir": str(folder / "state")},
        "receive": {"host": "127.0.0.1", "port": 11112, "min_free_disk_mb": 1},
        "study": {"quiet_seconds": 0.2},
        "models": {
            "folders": [str(MODELS)],
            "bone_suppression": "tiny-bone",
            "restoration": "tiny-restoration",
            "anomaly": "tiny-anomaly",
        },
        "infer": {"threads": 1},
        "destinations": {"FOLDER": {"type": "folder", "path": str(folder / "delivered")}},
        "rules": [{"name": "all", "tasks": TASKS, "destinations": ["FOLDER"], "forward_original": True}],
        "deliver": {"retry": {"first_seconds": 0.5, "max_seconds": 1.0, "attempts": 200}},
        **changes,
    }


@dataclass
class Bench:
    """A node's folder and configuration, with what a test does to it."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path = self.folder / "pacs-node.yaml"
        self.configure(**self.changes)
        self.node = Node.open(load(self.config_path))

    def configure(self, **changes: Any) -> None:
        """Write the configuration, as the JSON that YAML includes; ``changes`` replace its sections."""
        part = self.config_path.with_suffix(".part")
        part.write_text(json.dumps(settings(self.folder, **changes)))
        part.replace(self.config_path)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the node's engine."""
        client = Client(self.node.database, self.node.node_id)
        try:
            yield client
        finally:
            client.close()

    def receive(self, dataset: Dataset, calling_ae: str = "MODALITY") -> str:
        """Store and register an object as the receiver does; its key."""
        identity = Identity(
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            study_instance_uid=str(dataset.StudyInstanceUID),
            series_instance_uid=str(dataset.SeriesInstanceUID),
            transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        )
        incoming = self.node.spool.incoming(identity, calling_ae, 1 << 30)
        incoming.write(encoded(dataset))
        stored = self.node.spool.store(incoming, identity, calling_ae, "PACS_NODE")
        with self.client() as client:
            client.enqueue(NewJob(OBJECT, f"{OBJECT}/{stored.key}", {"key": stored.key}, INTAKE_QUEUE))
        return stored.key

    def jobs(self, prefix: str = "") -> dict[str, Job]:
        """All jobs by id."""
        with self.client() as client:
            return {job.id: job for job in client.find(prefix=prefix or None)}

    def deliveries(self) -> list[Job]:
        """The jobs that deliver, in the order in which they were enqueued."""
        return sorted(self.jobs("deliver/").values(), key=lambda job: job.created)

    def delivered(self) -> dict[str, bytes]:
        """What lies in the destination folder: SOP Instance UID to the file's bytes."""
        return {path.stem: path.read_bytes() for path in (self.folder / "delivered").rglob("*.dcm")}

    def work(self, **how: Any) -> Child:
        """Start the worker in a child process; see ``Child``."""
        return Child(self.config_path, **how)

    def work_off(self, seconds: float = WAIT, **how: Any) -> None:
        """Run the worker until no job is unfinished."""
        child = self.work(until_idle=True, **how)
        code = child.wait(seconds)
        assert code == 0, f"the worker's exit code is {code}"


class Listening(Bench):
    """A node that receives on a port of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        super().__init__(folder)

    def configure(self, receive: Mapping[str, Any] = MappingProxyType({}), **changes: Any) -> None:
        place = {"host": "127.0.0.1", "port": self.port, "min_free_disk_mb": 1}
        super().configure(receive={**place, **receive}, **changes)


class Child:
    """A worker process.

    ``kill_at``: the label of a boundary at which it kills itself, ``poison``: a SOP Instance UID whose
    analysis kills it, ``until_idle``: whether it ends when no job is unfinished, ``labels``: a file that gets
    every boundary's label.
    """

    def __init__(
        self,
        config_path: Path,
        *,
        kill_at: str | None = None,
        poison: str | None = None,
        until_idle: bool = False,
        labels: Path | None = None,
    ) -> None:
        log = config_path.with_name("worker.log")
        arguments = (config_path, log, kill_at, poison, until_idle, labels)
        self.process = _FORKS.Process(target=_work, args=arguments, daemon=True)
        self.process.start()

    def wait(self, seconds: float = WAIT) -> int:
        """Its exit code, negative for a signal; killed, and an AssertionError, if it does not end in time."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError("the worker did not end in time")
        return self.process.exitcode

    def stop(self) -> int:
        """End it as an administrator would."""
        self.process.terminate()
        return self.wait(120)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.join(10)


def _work(
    config_path: Path,
    log: Path,
    kill_at: str | None,
    poison: str | None,
    until_idle: bool,
    labels: Path | None,
) -> None:
    from pacs_node.pipeline import worker

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    _wrap_boundaries(kill_at, labels)
    if poison:
        _wrap_attempt(poison)
    if until_idle:
        threading.Thread(target=_end_when_idle, args=(config_path,), daemon=True).start()
    os._exit(worker.run(config_path))


def _wrap_boundaries(kill_at: str | None, labels: Path | None) -> None:
    from pacs_node.engine.engine import Run

    step, enqueue = Run.step, Run.enqueue

    def pass_by(label: str) -> None:
        if labels is not None:
            with labels.open("a") as file:
                file.write(label + "\n")
        if label == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped_step(self: Run, name: str, function: Callable[..., Any], *args: object) -> Any:
        label = f"{self.job_id} {name}"

        def wrapped_function(*inner: object) -> Any:
            result = function(*inner)
            pass_by(f"{label}: done, not recorded")
            return result

        pass_by(f"{label}: before")
        result = step(self, name, wrapped_function, *args)
        pass_by(f"{label}: recorded")
        return result

    def wrapped_enqueue(self: Run, job: NewJob) -> None:
        pass_by(f"{self.job_id} enqueue {job.id}: before")
        enqueue(self, job)
        pass_by(f"{self.job_id} enqueue {job.id}: recorded")

    Run.step, Run.enqueue = wrapped_step, wrapped_enqueue  # type: ignore[method-assign]


def _wrap_attempt(poison: str) -> None:
    from pacs_node.pipeline.analysis import Analyst

    attempt = Analyst.attempt

    def wrapped(self: Analyst, source: Any, *args: Any, **more: Any) -> Any:
        if source.sop_instance_uid == poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return attempt(self, source, *args, **more)

    Analyst.attempt = wrapped  # type: ignore[method-assign]


def _end_when_idle(config_path: Path) -> None:
    """Idle is when nothing is unfinished and the worker has seen to what its last dead job left to do."""
    from pacs_node.pipeline import process, worker
    from pacs_node.pipeline.jobs import Jobs

    # What an idle node may take its time for.
    process._TICK_SECONDS = worker.SETTLE_EVERY_SECONDS = 0.1
    settle, settled = Jobs.settle, threading.Event()

    def wrapped(self: Jobs, client: Client) -> None:
        settle(self, client)
        settled.set()

    Jobs.settle = wrapped  # type: ignore[method-assign]
    node = Node.open(load(config_path))
    client = Client(node.database, node.node_id)
    while True:
        if client.find(status=UNFINISHED, limit=1):
            settled.clear()
        elif settled.is_set():
            break
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


def encoded(dataset: Dataset) -> bytes:
    """The data set without its file meta, in its own transfer syntax (Explicit VR Little Endian)."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


class Process:
    """A process of the node with its log."""

    def __init__(self, bench: Bench, *arguments: str) -> None:
        self.log_path = bench.folder / f"{arguments[0].rpartition('.')[2]}.log"
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", *arguments, "--config", str(bench.config_path)]
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.count(text) >= times, f"{text!r} in the log:\n{self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT)


def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def listens(port: int) -> bool:
    """Whether something listens there; without connecting, which storescp would take for an association."""
    wanted = f":{port:04X}"
    return any(
        line.split()[1].endswith(wanted) and line.split()[3] == "0A"
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    )


class StoreScp:
    """DCMTK's storescp: a destination that is really another program."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.process = subprocess.Popen(
            [
                program,
                "--aetitle",
                "STORE",
                "-od",
                str(folder),
                "--unique-filenames",
                "+xa",
                "--fork",
                str(port),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Sent to too early, it would be a destination that is down.
        until(lambda: listens(port), f"storescp on port {port}")

    def received(self) -> dict[str, list[bytes]]:
        """SOP Instance UID to the contents that came under it, one for each time that it came."""
        from pydicom import dcmread

        found: dict[str, list[bytes]] = {}
        for path in sorted(self.folder.iterdir()):
            uid = str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            found.setdefault(uid, []).append(path.read_bytes())
        return found

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
