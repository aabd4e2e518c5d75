"""The process that runs jobs: queues, durable steps, recovery after a crash.

More facts of dbos 3.4.0 that shape it (see also ``client``):

- ``executor_id`` defaults to "local"; here it is the node's own, so that a restarted node recovers its own
  jobs.
- A retry inside a step would sleep holding the queue's slot: a job that must be tried again later enqueues
  its successor with a delay and ends.
- A job that was running when its process died is started again when the node starts; one that keeps ending
  its process is parked (``dead``) after ``max_starts``.
- A one-slot queue starts one job per poll, and polls once a second by default: hence the shorter interval.
  Each poll costs about 3 ms of CPU (measured), so queues that start several jobs per poll take longer ones.
- On recovery, an error that a step raised comes back as dbos's own exception type: a handler must take a
  step's outcome from what it returns, not from what it raises.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from pacs_node.engine.client import APPLICATION, SCHEMA_VERSION, Client, options, schema_of
from pacs_node.engine.job import JSON, NewJob

ONE_SLOT_POLLING_SECONDS, POLLING_SECONDS = 0.1, 0.25
MAX_STARTS = 3

log = logging.getLogger(__name__)


class Run:
    """What a running job may ask of the engine. A handler gets one; everything else it does goes inside
    steps.
    """

    def __init__(self, job_id: str, client: Client) -> None:
        self.job_id, self.client = job_id, client

    def step(self, name: str, function: Callable[..., JSON], *args: object) -> Any:
        """Run ``function(*args)`` and record what it returns (JSON) before going on; returns that.

        After a crash the recorded value is given again and the function is not called; a step that had not
        ended is called again, so it must come to the same result when it runs twice.
        """

        def as_replayed() -> Any:
            # Through JSON, so that the first run sees exactly what a recovery will see.
            return json.loads(json.dumps(function(*args)))

        return DBOS.run_step({"name": name}, as_replayed)

    def enqueue(self, job: NewJob) -> None:
        """As ``Client.enqueue``, and recorded as a step of this job in the same transaction."""
        DBOS.enqueue_workflow_with_options(options(job), dict(job.payload))


Handler = Callable[[Run, dict[str, Any]], Any]


@dataclass(frozen=True)
class _Kind:
    handler: Handler
    max_starts: int


class Engine:
    """Runs the jobs of one node; one per process (dbos keeps one global instance).

    ``queues`` maps a queue's name to how many of its jobs run at once in this process; a queue that is not
    named any more is emptied and then forgotten. Two engines of the same ``node_id`` must not run at the same
    time: each would take the other's running jobs for a dead process's.
    """

    def __init__(self, database: str, node_id: str, queues: Mapping[str, int]) -> None:
        self._database, self._node_id, self._queues = database, node_id, dict(queues)
        self._kinds: dict[str, _Kind] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()
        self.client: Client
        self._dbos: DBOS

    def register(self, kind: str, handler: Handler, max_starts: int = MAX_STARTS) -> None:
        """Name what runs jobs of ``kind``; before ``start``.

        ``max_starts``: how often such a job may be started when each start ends the process, until it is
        parked.
        """
        self._kinds[kind] = _Kind(handler, max_starts)

    def start(self) -> None:
        """Take up the jobs that a crash interrupted, then run queued ones until ``stop``."""
        self.client = Client(self._database, self._node_id)
        # Before launch, so that the first poll knows them: dbos looks for new queues only once a second.
        for name, concurrency in self._queues.items():
            self.add_queue(name, concurrency)
        self.client.remove_idle_queues(self._queues)
        self._dbos = DBOS(
            config=DBOSConfig(
                name=APPLICATION,
                system_database_url=self._database,
                dbos_system_schema=schema_of(self._node_id),
                executor_id=self._node_id,
                application_version=SCHEMA_VERSION,
                serializer=DBOSPortableJSONSerializer(),
                log_level="WARNING",
            )
        )
        for name, kind in self._kinds.items():
            # dbos parks at start number max_recovery_attempts + 2.
            DBOS.workflow(name=name, max_recovery_attempts=kind.max_starts - 1)(self._runner(name, kind))
        DBOS.launch()

    def add_queue(self, name: str, concurrency: int) -> None:
        """Run the jobs of one more queue, or change how many of its jobs run at once; after ``start`` too."""
        interval = ONE_SLOT_POLLING_SECONDS if concurrency == 1 else POLLING_SECONDS
        self.client.register_queue(name, concurrency, interval)

    def stop(self, grace_seconds: int = 0) -> bool:
        """Start no more jobs, give running ones ``grace_seconds`` to end, hand the others back to their
        queues.

        Returns whether nothing is left running. What still runs is fenced off: nothing that it does from here
        on is recorded, and its job starts again from its last recorded step, with no start counted against
        it.
        """
        for event in self._dbos.background_thread_stop_events:
            event.set()
        # A poll that is under way may still start a job: let it end.
        time.sleep(POLLING_SECONDS + 0.1)
        deadline = time.monotonic() + grace_seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
        DBOS.destroy(destroy_registry=True)
        left = self.client.find(status=["running"])
        self.client.hand_back(left)
        self.client.close()
        return not self._running

    def _runner(self, name: str, kind: _Kind) -> Callable[[dict[str, Any]], Any]:
        def run(payload: dict[str, Any]) -> Any:
            job_id = str(DBOS.workflow_id)
            with self._lock:
                self._running.add(job_id)
            try:
                return kind.handler(Run(job_id, self.client), payload)
            except Exception as error:
                # The job boundary: dbos records the error on the job; the log gets its type and place, not
                # its text.
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{place.filename}:{place.lineno}"
                log.error("job failed", extra={"job": job_id, "error": type(error).__name__, "at": where})
                raise
            finally:
                with self._lock:
                    self._running.discard(job_id)

        run.__qualname__ = run.__name__ = name
        return run
