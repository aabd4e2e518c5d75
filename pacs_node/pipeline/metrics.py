"""Figures for Prometheus, served by the worker: counted here or, on each request, read from where they are.

    pacs_node_info{version}                     1
    pacs_node_objects_routed_total{outcome}     objects decided about: analysed, refused, or only kept
    pacs_node_task_seconds{task,status}         histogram of the time that tasks took
    pacs_node_jobs{kind,state}                  jobs that are queued, delayed, running, failed or dead
    pacs_node_deliveries_waiting{destination}   deliveries that are queued, delayed or running
    pacs_node_spool_free_bytes                  what may still be written where the spool is

Labels are names from the configuration and words of the program: no patient data, no UIDs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client import Counter as Counted
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pacs_node import __version__
from pacs_node.config.metrics import Metrics
from pacs_node.engine.client import Client
from pacs_node.engine.job import UNFINISHED
from pacs_node.pipeline.node import DELIVER, Node, deliver_queue

log = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
ROUTED = Counted("pacs_node_objects_routed", "Objects decided about", ["outcome"], registry=REGISTRY)
TASK_SECONDS = Histogram(
    "pacs_node_task_seconds",
    "Time that a task took on one image",
    ["task", "status"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
    registry=REGISTRY,
)


class Present(Collector):
    """What is read at the time of the request."""

    def __init__(self, node: Node, client: Client) -> None:
        self._node, self._client = node, client

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures, for prometheus-client."""
        info = GaugeMetricFamily("pacs_node_info", "The node that answers", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        tally = self._client.tally([*UNFINISHED, "failed", "dead"])
        by_state: Counter[tuple[str, str]] = Counter()
        waiting: Counter[str] = Counter()
        prefix = deliver_queue("")
        for (kind, state, queue), number in tally.items():
            by_state[kind, state] += number
            if kind == DELIVER and state in UNFINISHED:
                waiting[queue.removeprefix(prefix)] += number
        jobs = GaugeMetricFamily("pacs_node_jobs", "Jobs that are not done", labels=["kind", "state"])
        for labels, number in sorted(by_state.items()):
            jobs.add_metric(labels, number)
        yield jobs
        deliveries = GaugeMetricFamily(
            "pacs_node_deliveries_waiting", "Deliveries that are not made yet", labels=["destination"]
        )
        for destination, number in sorted(waiting.items()):
            deliveries.add_metric([destination], number)
        yield deliveries
        yield GaugeMetricFamily(
            "pacs_node_spool_free_bytes", "Free space where the spool is", self._node.spool.free_bytes()
        )


def serve(settings: Metrics, node: Node, client: Client) -> None:
    """Answer Prometheus until the process ends. An address that cannot be had is logged: work goes on."""
    REGISTRY.register(Present(node, client))
    try:
        start_http_server(settings.port, settings.host, REGISTRY)
    except OSError as error:
        log.error(
            "no metrics on %s:%s: %s. Stop what uses that port, or change metrics.port",
            settings.host,
            settings.port,
            error.strerror or error,
        )
    else:
        log.info("metrics", extra={"at": f"http://{settings.host}:{settings.port}/metrics"})
