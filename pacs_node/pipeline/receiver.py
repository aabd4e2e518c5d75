"""The receiving process: objects into the spool and a job for each, and nothing else.

It listens before the engine's client is loaded (dbos and SQLAlchemy take longer to import than everything
else here together); an object that arrives in that moment waits for it, because it is answered only when its
job is durable.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_node import log as node_log
from pacs_node.engine.job import EngineError, NewJob
from pacs_node.pipeline.commitments import first_report
from pacs_node.pipeline.node import INTAKE_QUEUE, OBJECT, Node
from pacs_node.pipeline.process import Signals, configured, main, seconds_since_start
from pacs_node.receive.commitment import Verdict
from pacs_node.receive.commitment_scp import Commitments
from pacs_node.receive.scp import Receiver
from pacs_node.receive.spool import Stored

if TYPE_CHECKING:
    from pacs_node.engine.client import Client

log = logging.getLogger(__name__)


class Registry:
    """Registers received objects as jobs; opens the engine's client when it is first needed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._client: Client | None = None

    def client(self) -> Client:
        """The client, opened once. Raises EngineError; the next call tries again."""
        with self._lock:
            if self._client is None:
                from pacs_node.engine.client import Client

                self._client = Client(self._node.database, self._node.node_id)
            return self._client

    def warm_up(self) -> None:
        """Open the client before the first object comes; what is wrong is logged, and tried again with each
        object.
        """
        try:
            self.client()
        except EngineError as error:
            log.error("%s Objects are refused until then.", error)

    def register(self, stored: Stored) -> None:
        """Enqueue the object's job; an object that is held already has one, which stays as it is."""
        self.ensure_job(stored.key)
        log.info(
            "received",
            extra={"job": f"{OBJECT}/{stored.key}", "repeated": stored.repeated, "conflict": stored.conflict},
        )

    def ensure_job(self, key: str) -> None:
        """As ``register``, of an object that is held."""
        self.client().enqueue(NewJob(OBJECT, f"{OBJECT}/{key}", {"key": key}, INTAKE_QUEUE))

    def register_verdict(self, verdict: Verdict) -> None:
        """Enqueue the report on a storage commitment."""
        self.client().enqueue(first_report(verdict))


def run(config_path: Path, parent: int | None = None) -> int:
    """Receive until SIGTERM; the exit code. ``parent`` as for Signals."""
    signals = Signals(parent)
    live = configured(config_path, "receiver")
    if live is None:
        return 2
    node = Node.open(live.config)
    registry = Registry(node)
    commitments = Commitments(node.commitments, node.verdicts, registry.ensure_job, registry.register_verdict)
    receiver = Receiver(live.config, node.spool, registry.register, commitments)
    try:
        receiver.start()
    except OSError as error:
        place = f"{live.config.receive.host}:{live.config.receive.port}"
        log.error("cannot listen on %s: %s. Stop what uses that port, or change receive.port", place, error)
        return 1
    log.info(
        "receiving",
        extra={
            "ae_title": live.config.node.ae_title,
            "host": live.config.receive.host,
            "port": receiver.port,
            "seconds": seconds_since_start(),
        },
    )
    threading.Thread(target=registry.warm_up, name="warm-up", daemon=True).start()
    while signals.wait():
        # Only when asked: a receiver that follows a half-written file could turn senders away.
        if signals.take_reload() and live.refresh():
            node_log.configure("receiver", live.config.node.log_level)
            try:
                receiver.reconfigure(live.config)
            except OSError as error:
                log.error("the new address cannot be used, the old one stays: %s", error)
    receiver.stop()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    main(run)
