"""What every long-running process of the node does alike: read its arguments, end on SIGTERM, reload on
SIGHUP, not outlive its parent.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pacs_node import log as node_log
from pacs_node.errors import ConfigurationError
from pacs_node.pipeline.node import LiveConfig

_TICK_SECONDS = 1.0


def main(run: Callable[[Path, int | None], int]) -> NoReturn:
    """``python -m <the module of run> --config FILE [--parent PID]``; ends with the exit code of ``run``."""
    module = sys.modules[run.__module__]
    name = module.__spec__.name if module.__spec__ else run.__module__
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=module.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the node's configuration file")
    parser.add_argument("--parent", type=int, help="end when the process of this id is no longer the parent")
    arguments = parser.parse_args()
    sys.exit(run(arguments.config, arguments.parent))


def configured(config_path: Path, process: str) -> LiveConfig | None:
    """The configuration, and the log of ``process`` set up by it; None, said on stderr, if it is wrong."""
    try:
        live = LiveConfig(config_path)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return None
    node_log.configure(process, live.config.node.log_level)
    return live


def seconds_since_start() -> float:
    """How long ago this process was started, interpreter and imports included (Linux; 10 ms resolution)."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


class Signals:
    """SIGTERM and SIGINT ask the process to end, SIGHUP to reload. Install from the main thread."""

    def __init__(self, parent: int | None = None) -> None:
        """``parent``: the process id of a supervisor; when it is gone, that is taken as SIGTERM."""
        self._parent = parent
        self._reload = False
        self.stopping = False
        # Python writes a byte here for each signal. An Event would not do: its lock may be held by the very
        # wait that the handler interrupts.
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def wait(self) -> bool:
        """Sleep a second, or less when a signal comes; false when the process is to end."""
        if select.select([self._woken], [], [], _TICK_SECONDS)[0]:
            os.read(self._woken, 4096)
        if self._parent is not None and os.getppid() != self._parent:
            self.stopping = True
        return not self.stopping

    def take_reload(self) -> bool:
        """Whether a SIGHUP has come since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._reload = True
