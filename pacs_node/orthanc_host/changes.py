"""Follows what is stored in Orthanc, whichever way it came.

Orthanc numbers its changes and keeps them in its database with the instance itself: that list is the outbox,
and the only thing to be kept here is how far it has been read. Nothing is missed while this process or
Orthanc is down, and starting up is no other work than going on.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pacs_node.config import Config
from pacs_node.engine.job import EngineError
from pacs_node.files import atomic_write, make_folder
from pacs_node.orthanc_api import OrthancApi, OrthancError
from pacs_node.orthanc_host.intake import Intake, Taken
from pacs_node.pipeline.node import Node

log = logging.getLogger(__name__)

_AT_ONCE = 100
#: The plugin says at once when something was stored; this is for what it could not say.
_POLL_SECONDS = 2.0
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 30.0


class Follower(threading.Thread):
    """The thread that reads the changes. ``read`` is the number of the last one that was dealt with, ``seen``
    counts what became of the instances.
    """

    def __init__(
        self,
        node: Node,
        intake: Intake,
        api: OrthancApi,
        current: Callable[[], Config],
        first: int,
        halt: Callable[[str], None],
    ) -> None:
        """``first``: where to begin if this node never followed this Orthanc: what was there before is
        analysed on demand only. ``halt`` is called with the reason if the thread cannot go on.
        """
        super().__init__(name="changes", daemon=True)
        self._node, self._intake, self._api, self._current, self._halt = node, intake, api, current, halt
        self._path = node.state_dir / "orthanc" / "changes.json"
        make_folder(self._path.parent, 0o700)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.seen: Counter[str] = Counter()
        self.trouble = ""
        self.read = _read(self._path)
        if self.read is None:
            log.info("this Orthanc is followed from now on", extra={"change": first})
            self._keep(first)

    def wake(self) -> None:
        """Something was stored."""
        self._wake.set()

    def stop(self) -> None:
        """End soon; what is not recorded as read is read again at the next start."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Follow until ``stop``."""
        try:
            self._follow()
        # A thread that ends without a word would leave Orthanc unwatched: the process ends, and is restarted.
        except Exception as error:
            log.exception("following the changes failed", extra={"error": type(error).__name__})
            self._halt(type(error).__name__)

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._catch_up()
            except (OrthancError, OSError, EngineError) as error:
                if str(error) != self.trouble:
                    log.warning("cannot take in what is stored, trying again: %s", error)
                self.trouble = str(error)
                failures += 1
                self._stop.wait(min(_MAX_RETRY_SECONDS, _RETRY_SECONDS * 2 ** min(failures - 1, 10)))
                continue
            if self.trouble:
                log.info("taking in what is stored again")
            failures, self.trouble = 0, ""
            self._wake.wait(_POLL_SECONDS)

    def _catch_up(self) -> None:
        done = False
        while not done and not self._stop.is_set():
            since = self.read or 0
            answer = self._api.get(f"/changes?since={since}&limit={_AT_ONCE}")
            last = int(answer["Last"])
            if last < since:
                log.warning("Orthanc has a new database; it is read from its beginning", extra={"was": since})
                self._keep(0)
                continue
            for change in answer["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    if self._stop.is_set():
                        return
                    self._take(str(change["ID"]))
            if last > since:
                self._keep(last)
            done = bool(answer["Done"])

    def _take(self, instance: str) -> None:
        config = self._current()
        free = self._node.spool.free_bytes() >> 20
        if free < config.receive.min_free_disk_mb:
            raise OSError(
                f"{self._node.spool.root} has {free} MB free, less than receive.min_free_disk_mb "
                f"({config.receive.min_free_disk_mb})"
            )
        taken = self._intake.take(self._api, instance, config)
        self.seen[taken.outcome] += 1
        announce(taken)

    def _keep(self, change: int) -> None:
        atomic_write(self._path, json.dumps({"read": change}).encode())
        self.read = change


def announce(taken: Taken) -> None:
    """Log what became of an instance."""
    level = logging.WARNING if taken.outcome == "refused" else logging.INFO
    if taken.outcome == "not-wanted":
        level = logging.DEBUG
    about = {"key": taken.key} if taken.key else {"reason": taken.reason}
    log.log(level, "instance %s", taken.outcome, extra={"instance": taken.instance, **about})


def _read(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes())["read"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.error("%s is damaged: Orthanc is read from its beginning", path)
        return 0
