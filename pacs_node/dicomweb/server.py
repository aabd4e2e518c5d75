"""The DICOMweb process: what comes goes into the spool with a job for each object, what is held comes out."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
import warnings
from pathlib import Path

import uvicorn

from pacs_node import log as node_log
from pacs_node.config.model import Config
from pacs_node.config.web import Web
from pacs_node.dicomweb.access import MissingSecretError, Secrets
from pacs_node.dicomweb.app import ROOT, Service, application
from pacs_node.dicomweb.index import Index
from pacs_node.pipeline.node import Node
from pacs_node.pipeline.process import Signals, configured, main, seconds_since_start
from pacs_node.pipeline.receiver import Registry

log = logging.getLogger(__name__)

#: Connections at once; the next ones are answered 503.
MAX_CONNECTIONS = 200
_GRACE_SECONDS = 5


class Listener:
    """One server on one address, in a thread of its own."""

    def __init__(self, web: Web, service: Service, secrets: Secrets) -> None:
        """Raises OSError if the address cannot be listened on."""
        family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
        self._socket = socket.create_server((web.host, web.port), family=family, backlog=128)
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(service, list(web.origins), secrets),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Let open requests finish for a while, and end."""
        self._server.should_exit = True
        self._thread.join(_GRACE_SECONDS + 3)
        self._socket.close()


def run(config_path: Path, parent: int | None = None) -> int:
    """Serve until SIGTERM; the exit code. ``parent`` as for Signals."""
    signals = Signals(parent)
    live = configured(config_path, "web")
    if live is None:
        return 2
    # pydicom's warnings quote what stands in headers.
    warnings.simplefilter("ignore")
    if live.config.web is None:
        log.error("web is not configured. Add a section web to %s", config_path)
        return 2
    node = Node.open(live.config)
    node.spool.prepare()
    registry = Registry(node)
    try:
        index = Index(node.state_dir / "dicomweb.db", node.spool)
    except (OSError, sqlite3.Error) as error:
        log.error("the index in %s can neither be used nor made: %s", node.state_dir, error)
        return 1
    serving = live.config
    service = Service(lambda: serving, node.spool, index, registry.register)
    listener = _listen(serving, service)
    if listener is None:
        return 1
    log.info("serving DICOMweb", extra={"path": ROOT, "seconds": seconds_since_start()})
    threading.Thread(target=_warm_up, args=(registry, index), name="warm-up", daemon=True).start()
    while signals.wait() and listener.alive:
        if not (signals.take_reload() and live.refresh()):
            continue
        changed = live.config
        if changed.web is None:
            log.warning("web is no longer configured: it ends when the node is restarted")
            continue
        old, serving = serving, changed
        node_log.configure("web", serving.node.log_level)
        if old.web != serving.web:
            listener.stop()
            listener = _listen(serving, service)
            if listener is None:
                return 1
    ended_by_itself = not listener.alive
    listener.stop()
    index.close()
    log.info("stopped")
    return 1 if ended_by_itself else 0


def _warm_up(registry: Registry, index: Index) -> None:
    """What the first request would otherwise wait for: the engine's client, and what came meanwhile."""
    registry.warm_up()
    index.refresh()


def _listen(config: Config, service: Service) -> Listener | None:
    """Listen as configured; None, and the reason in the log, if that cannot be."""
    web = config.web
    assert web is not None  # noqa: S101  asked by the caller
    try:
        listener = Listener(web, service, Secrets.of(web, os.environ))
    except MissingSecretError as error:
        log.error("%s", error)
        return None
    except OSError as error:
        place = f"{web.host}:{web.port}"
        log.error("cannot listen on %s: %s. Stop what uses that port, or change web.port", place, error)
        return None
    log.info("listening", extra={"host": web.host, "port": web.port})
    return listener


if __name__ == "__main__":
    main(run)
