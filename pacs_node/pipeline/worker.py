"""The working process: holds the models and runs the node's jobs."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from pathlib import Path

from pacs_node import __version__
from pacs_node import log as node_log
from pacs_node.config import Config
from pacs_node.engine.client import without_password
from pacs_node.engine.engine import Engine
from pacs_node.engine.job import EngineError
from pacs_node.errors import ModelError
from pacs_node.pipeline import metrics
from pacs_node.pipeline.jobs import Jobs
from pacs_node.pipeline.node import LiveConfig, Node, queues
from pacs_node.pipeline.process import Signals, configured, main
from pacs_node.tasks import Task

log = logging.getLogger(__name__)

GRACE_SECONDS = 5
SETTLE_EVERY_SECONDS, PURGE_EVERY_SECONDS = 5.0, 3600.0


def run(config_path: Path, parent: int | None = None) -> int:
    """Run jobs until SIGTERM; the exit code. ``parent`` as for Signals."""
    signals = Signals(parent)
    live = configured(config_path, "worker")
    if live is None:
        return 2
    # pydicom's judgements of values from outside quote them; what matters of them comes as refusals.
    warnings.simplefilter("ignore")
    node = Node.open(live.config)
    try:
        with node.only_worker():
            return _work(node, live, signals)
    except BlockingIOError:
        log.error(
            "another worker runs the jobs of %s; stop it first, or use another node.state_dir", node.state_dir
        )
        return 1


def _work(node: Node, live: LiveConfig, signals: Signals) -> int:
    def current() -> Config:
        if live.refresh():
            node_log.configure("worker", live.config.node.log_level)
            for name, slots in queues(live.config).items():
                engine.add_queue(name, slots)
            log.info("working by the new configuration")
        return live.config

    engine = Engine(node.database, node.node_id, queues(live.config))
    jobs = Jobs(node, current)
    jobs.register(engine)
    try:
        engine.start()
    except EngineError as error:
        log.error("%s", error)
        return 1
    announce(node, live.config, jobs)
    if live.config.metrics is not None:
        metrics.serve(live.config.metrics, node, engine.client)
    threading.Thread(target=_load_models, args=(jobs, live.config), name="load-models", daemon=True).start()
    settled = purged = float("-inf")
    while signals.wait():
        if signals.take_reload():
            current()
        now = time.monotonic()
        if now - settled > SETTLE_EVERY_SECONDS:
            jobs.settle(engine.client)
            settled = now
        if now - purged > PURGE_EVERY_SECONDS:
            jobs.purge(engine.client)
            purged = now
    if not engine.stop(GRACE_SECONDS):
        log.info("stopped with unfinished jobs, which go on at the next start")
        # Their threads cannot be ended otherwise; nothing that they still do is recorded.
        os._exit(0)
    log.info("stopped")
    return 0


def announce(node: Node, config: Config, jobs: Jobs) -> None:
    """Log what this worker works with: rules, destinations, models, and where the spool is."""
    log.info(
        "working",
        extra={"version": __version__, "spool": node.spool.root, "jobs": without_password(node.database)},
    )
    for rule in config.rules:
        log.info(
            "rule",
            extra={
                "rule": rule.name,
                "tasks": ",".join(rule.tasks) or "none",
                "destinations": ",".join(rule.destinations) or "none",
                "forward_original": rule.forward_original,
            },
        )
    for name, destination in config.destinations.items():
        if destination.type == "folder":
            place = str(destination.path)
        elif destination.type == "dicom":
            place = f"{destination.ae_title}@{destination.host}:{destination.port}"
        else:
            place = destination.url or "the Orthanc that runs this node"
        log.info("destination", extra={"destination": name, "type": destination.type, "at": place})
    for task in _wanted(config):
        try:
            card = jobs.analyst().card(task)
        except ModelError as error:
            log.error("no model for %s: %s", task, error)
        else:
            log.info(
                "model",
                extra={
                    "task": task.value,
                    "model": card.name,
                    "version": card.version,
                    "digest": card.digest,
                },
            )


def _load_models(jobs: Jobs, config: Config) -> None:
    """Load what the rules will need before the first image does."""
    for task in _wanted(config):
        began = time.monotonic()
        try:
            jobs.analyst().model(task)
        except ModelError as error:
            log.error("the model for %s cannot be loaded: %s", task, error)
        else:
            log.info("model loaded", extra={"task": task.value, "seconds": time.monotonic() - began})


def _wanted(config: Config) -> list[Task]:
    wanted = {task for rule in config.rules for task in rule.tasks}
    return [task for task in Task if task in wanted]


if __name__ == "__main__":
    main(run)
