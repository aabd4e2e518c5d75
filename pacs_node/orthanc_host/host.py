"""The process that the plugin starts: follows Orthanc, keeps the worker running, answers requests.

It speaks in lines of JSON over its standard input and output: the first line is the setup; after it an empty
line says that something was stored, and any other is a request, which is answered by a line. When the input
ends, Orthanc is gone, and so does this process. Its log goes to standard error, which the plugin passes on to
Orthanc's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from pacs_node import log as node_log
from pacs_node.config import Config
from pacs_node.engine.client import Client
from pacs_node.engine.job import EngineError
from pacs_node.errors import ConfigurationError
from pacs_node.orthanc_api import OrthancApi
from pacs_node.orthanc_host.changes import Follower
from pacs_node.orthanc_host.control import Control
from pacs_node.orthanc_host.intake import Intake
from pacs_node.orthanc_host.setup import Setup, write_for_worker
from pacs_node.pipeline.node import Node
from pacs_node.pipeline.process import Signals
from pacs_node.pipeline.serve import Child

log = logging.getLogger(__name__)

#: The plugin does not start this process again after it: nothing changes until the configuration does.
WRONG_CONFIGURATION = 2
#: How long the one that the last Orthanc left may take to end.
_PREDECESSOR_SECONDS = 30.0
_WORKER_SECONDS = 8.0


class Live:
    """The configuration as it is now: its file is read again when it has changed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.config = setup.load()
        self._stamp = self._now()

    def refresh(self) -> bool:
        """Whether the configuration is now another. A file that is wrong is logged once, and changes
        nothing.
        """
        stamp = self._now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            config = self._setup.load()
        except ConfigurationError as error:
            for problem in error.problems:
                log.error("configuration not taken over, the last good one stays: %s", problem)
            return False
        changed, self.config = config != self.config, config
        return changed

    def _now(self) -> tuple[int, int] | None:
        file = self._setup.file()
        try:
            status = file.stat() if file else None
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size) if status else None


class Host:
    """All of it, for one start of Orthanc."""

    def __init__(self, setup: Setup, requests: BinaryIO, answers: BinaryIO, signals: Signals) -> None:
        """Raises ConfigurationError, OSError, EngineError."""
        os.environ.update(setup.environment())
        self._live = Live(setup)
        self._requests, self._answers, self._signals = requests, answers, signals
        node_log.configure("orthanc", self._config.node.log_level)
        node = Node.open(self._config)
        self._lock = _only_one(node.state_dir)
        node.spool.prepare()
        self._client = Client(node.database, node.node_id)
        worker = [sys.executable, "-m", "pacs_node.pipeline.worker", "--parent", str(os.getpid()), "--config"]
        self._worker = Child("worker", [*worker, str(write_for_worker(self._config))])
        # The follower and the requests each have a connection and a temporary area of their own.
        self._follower = Follower(
            node,
            Intake(node, self._client),
            OrthancApi.hosting(),
            lambda: self._config,
            setup.last_change,
            self._halt,
        )
        intake, api = Intake(node, self._client), OrthancApi.hosting()
        self._control = Control(
            node, self._client, intake, api, self._follower, self._worker, lambda: self._config
        )

    @property
    def _config(self) -> Config:
        return self._live.config

    def run(self) -> int:
        """Work until Orthanc ends, or SIGTERM; the exit code."""
        log.info("following Orthanc", extra={"from_change": self._follower.read})
        self._follower.start()
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        while True:
            self._worker.tend()
            if not self._signals.wait():
                break
            if self._live.refresh():
                node_log.configure("orthanc", self._config.node.log_level)
                write_for_worker(self._config)
                log.info("working by the new configuration")
        self._follower.stop()
        self._end_worker()
        log.info("stopped")
        return 1 if self._follower.is_alive() and not self._signals.stopping else 0

    def _listen(self) -> None:
        for line in self._requests:
            if not line.strip():
                self._follower.wake()
                continue
            request = json.loads(line)
            status, body = self._control.answer(request["method"], request["path"], request["query"])
            answer = json.dumps({"id": request["id"], "status": status, "body": body}, default=str)
            try:
                self._answers.write(answer.encode() + b"\n")
                self._answers.flush()
            except BrokenPipeError:
                break
        # Orthanc has closed our input, or is gone.
        os.kill(os.getpid(), signal.SIGTERM)

    def _halt(self, reason: str) -> None:
        log.error("ending, to be started again", extra={"reason": reason})
        os.kill(os.getpid(), signal.SIGTERM)

    def _end_worker(self) -> None:
        self._worker.send(signal.SIGTERM)
        process = self._worker.process
        if process is None:
            return
        try:
            process.wait(_WORKER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _only_one(state_dir: Path) -> int:
    """Hold the right to follow an Orthanc for this node, as soon as the predecessor has ended.

    Raises BlockingIOError if it does not end.
    """
    descriptor = os.open(state_dir / "orthanc.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _PREDECESSOR_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return descriptor


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for this process alone: children get an empty input, and the log as
    output.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def main() -> int:
    """``python -m pacs_node.orthanc_host.host``, started by the plugin."""
    signals = Signals(os.getppid())
    requests, answers = _own_streams()
    node_log.configure("orthanc")
    setup = Setup.from_json(requests.readline())
    try:
        return Host(setup, requests, answers, signals).run()
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("configuration: %s", problem)
        return WRONG_CONFIGURATION
    except BlockingIOError:
        log.error("another process follows an Orthanc for this node; give each Orthanc a node.state_dir")
        return 1
    except (EngineError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
