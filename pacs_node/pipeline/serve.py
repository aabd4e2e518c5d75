"""The supervisor: keeps a receiver, a worker and, if configured, a DICOMweb process running, and passes
SIGTERM and SIGHUP on to them.

It holds no work of its own, so its death loses nothing: its children notice and end, and everything that was
received goes on at the next start.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pacs_node.config import Config
from pacs_node.config.check import check
from pacs_node.config.load import load_with_source
from pacs_node.errors import ConfigurationError
from pacs_node.pipeline.process import Signals

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
#: A process that ran this long was not failing at its start: the next restart is prompt again.
STEADY_SECONDS = 60.0
STOP_SECONDS = 15.0

#: What can be kept running, each a module with ``--config FILE --parent PID``.
PROCESSES = {
    "receiver": "pacs_node.pipeline.receiver",
    "worker": "pacs_node.pipeline.worker",
    "web": "pacs_node.dicomweb.server",
}


@dataclass
class Child:
    """One process that is kept alive."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = field(default=0.0)

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(self.command)
        self.started = time.monotonic()
        log.info("started", extra={"child": self.name, "pid": self.process.pid})

    def tend(self) -> None:
        """Start it if it does not run and its time has come."""
        if self.process is None:
            if time.monotonic() >= self.not_before:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.process = None
        self.failures = 0 if time.monotonic() - self.started > STEADY_SECONDS else self.failures + 1
        delay = backoff(self.failures)
        self.not_before = time.monotonic() + delay
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        log.error("ended by itself", extra={"child": self.name, "by": ended, "restart_in_seconds": delay})

    def send(self, number: signal.Signals) -> None:
        """Send it a signal if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def backoff(failures: int) -> float:
    """Seconds until a restart after so many early ends in a row: at once, then 0.5 s doubling up to 30 s."""
    if failures <= 1:
        return 0.0
    return float(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (failures - 2)))


def preflight(config_path: Path) -> Config:
    """Check the configuration against this machine; what is wrong is logged.

    Raises ConfigurationError for what no waiting mends: a file that is wrong, a model or a provider that is
    not there, a rule that cannot fire. A disk that is full, a port that is still in use or a destination that
    is away may be well in a minute, and are no reason not to deliver what can be delivered; nor is a model
    that is there and broken, or asked for a sampler that it cannot do: its task fails while the others run.
    """
    from pacs_node.infer.catalog import Catalog

    config, source = load_with_source(config_path)
    problems = check(config, source)
    broken = {problem.name for problem in Catalog(config.models.folders).problems}
    fatal = [
        p
        for p in problems
        if p.severity == "error"
        and p.key.split(".")[0] in ("models", "infer", "rules")
        and not (p.key.startswith("models.") and p.value in broken)
        and not p.key.startswith(("infer.samplers.", "infer.steps."))
    ]
    if fatal:
        raise ConfigurationError(fatal)
    for problem in problems:
        log.warning("%s", problem)
    return config


def wanted(config: Config) -> tuple[str, ...]:
    """The processes that a configuration asks for."""
    return ("receiver", "worker") if config.web is None else ("receiver", "worker", "web")


def run(config_path: Path, children: tuple[str, ...] = ("receiver", "worker")) -> int:
    """Supervise until SIGTERM or SIGINT; the exit code."""
    signals = Signals()
    kept = [
        Child(
            name,
            [
                sys.executable,
                "-m",
                PROCESSES[name],
                "--config",
                str(config_path),
                "--parent",
                str(os.getpid()),
            ],
        )
        for name in children
    ]
    while True:
        for child in kept:
            child.tend()
        if not signals.wait():
            break
        if signals.take_reload():
            log.info("reloading")
            for child in kept:
                child.send(signal.SIGHUP)
    log.info("stopping")
    for child in kept:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for child in kept:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Everything it had not finished is recorded and goes on at the next start.
            log.error("did not end in time and is killed", extra={"child": child.name})
            child.process.kill()
            child.process.wait()
    log.info("stopped")
    return 0
