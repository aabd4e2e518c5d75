"""What the node's processes share: its folder, its identity, its jobs' names and queues. Imports nothing
heavy.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pacs_node.commitment import Ledger
from pacs_node.config import Config, load
from pacs_node.errors import ConfigurationError
from pacs_node.files import atomic_write, make_folder
from pacs_node.receive.commitment import Verdicts
from pacs_node.receive.spool import Spool

log = logging.getLogger(__name__)

# The kinds of jobs. A job's id is its kind and the spool's key of what it works on.
OBJECT, ANALYSE, REPORT, DELIVER = "object", "analyse", "report", "deliver"
#: Except for this one: what a requester of storage commitment is to be told.
COMMITMENT = "commitment"

#: How a task of an analysis ended, as ``Analyst.attempt`` says it.
DONE, FAILED, NOT_ATTEMPTED = "done", "failed", "not_attempted"

#: Reading headers and deciding: light, so several at once.
INTAKE_QUEUE, INTAKE_SLOTS = "intake", 8
#: One image at a time has the accelerator, or all the cores.
ACCELERATOR_QUEUE, ACCELERATOR_SLOTS = "accelerator", 1
#: One at a time, so that two reports of a study are never made side by side.
REPORT_QUEUE, REPORT_SLOTS = "report", 1
#: A queue for each destination, so that one that is down delays only its own deliveries.
DELIVER_SLOTS = 4
#: Reports to requesters of storage commitment; one that is away holds a slot until its timeout.
COMMITMENT_QUEUE, COMMITMENT_SLOTS = "commitment", 4

_NODE_ID_DIGITS = 12


def deliver_queue(destination: str) -> str:
    """The queue of a destination, given its name in the configuration."""
    return f"{DELIVER}/{destination}"


def queues(config: Config) -> dict[str, int]:
    """Every queue that a worker of this configuration serves, and its jobs at once."""
    return {
        INTAKE_QUEUE: INTAKE_SLOTS,
        ACCELERATOR_QUEUE: ACCELERATOR_SLOTS,
        REPORT_QUEUE: REPORT_SLOTS,
        **({COMMITMENT_QUEUE: COMMITMENT_SLOTS} if config.receive.commitment else {}),
        **{deliver_queue(name): DELIVER_SLOTS for name in config.destinations},
    }


@dataclass(frozen=True)
class Node:
    """The node on this machine: ``state_dir`` with the spool and the jobs, and the id that keeps its jobs its
    own.
    """

    state_dir: Path
    node_id: str
    spool: Spool
    database: str

    @property
    def commitments(self) -> Ledger:
        """The storage commitments that were asked of destinations."""
        return Ledger(self.state_dir / "commitment")

    @property
    def verdicts(self) -> Verdicts:
        """What was answered to requests for storage commitment, and is still to be reported."""
        return Verdicts(self.state_dir / "commitment-verdicts")

    @staticmethod
    def open(config: Config) -> Node:
        """Make what is missing of the node's folder. Raises OSError if that cannot be."""
        state_dir = config.node.state_dir
        make_folder(state_dir / "spool")
        return Node(
            state_dir,
            _node_id(state_dir / "node-id"),
            Spool(state_dir / "spool"),
            config.engine.database or f"sqlite:///{(state_dir / 'jobs.db').absolute()}",
        )

    @contextmanager
    def only_worker(self) -> Iterator[None]:
        """Hold the right to run this node's jobs; raises BlockingIOError if another process of this machine
        has it.
        """
        descriptor = os.open(self.state_dir / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)


def _node_id(path: Path) -> str:
    with path.with_name("node-id.lock").open("w") as lock:
        # Receiver and worker start at the same time: the first to come names the node.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            atomic_write(path, secrets.token_hex(_NODE_ID_DIGITS // 2).encode())
        return path.read_text().strip()


class LiveConfig:
    """The configuration file as it is now; while it is wrong, as it last was right."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError if the file is wrong at the start."""
        self.path = path
        self._seen = self._stamp()
        self._lock = threading.Lock()
        self.config = load(path)

    def refresh(self) -> bool:
        """Read the file again if it has changed; whether ``config`` is now another. A wrong file is logged
        once.

        Safe to call from several threads; one of them is told of a change.
        """
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            config = load(self.path)
        except ConfigurationError as error:
            for problem in error.problems:
                log.error("configuration not taken over, the last good one stays: %s", problem)
            return False
        fixed = ("node.state_dir", "engine.database")
        for name, old, new in zip(
            fixed,
            (self.config.node.state_dir, self.config.engine.database),
            (config.node.state_dir, config.engine.database),
            strict=True,
        ):
            if old != new:
                log.warning("%s has changed: it takes effect when the node is restarted", name)
        changed, self.config = config != self.config, config
        return changed

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None  # an editor may be between removing and renaming
        return status.st_mtime_ns, status.st_size, status.st_ino
