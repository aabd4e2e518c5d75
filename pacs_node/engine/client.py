"""Enqueue, cancel, retry, list and purge jobs: everything that needs no worker.

Facts of dbos 3.4.0 that this module relies on or works around (measured, not only read):

- A job's id is its identity: enqueueing an id again changes nothing and raises nothing.
- The default serializer is pickle; this one is JSON, so nothing that is read back can execute code.
- SQLite is left in DELETE journal mode; WAL lets a receiver enqueue while a worker reads. ``synchronous``
  stays FULL (SQLite's default), so that an enqueued job survives a power cut.
- Jobs carry an application version that defaults to a hash of the source, which would strand every job at the
  next update: it is pinned to ``SCHEMA_VERSION``, the version of the payloads.
- ``resume`` revives a cancelled or dead job but does nothing to a failed one, ``rewind`` revives any ended
  job.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from pacs_node.engine.job import UNSUCCESSFUL, EngineError, Job, NewJob, Status, Step

APPLICATION = "pacs-node"
#: Raise it only when old payloads can no longer be run by new code.
SCHEMA_VERSION = "1"

_STATUS: dict[str, Status] = {
    "ENQUEUED": "queued",
    "DELAYED": "delayed",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "CANCELLED": "cancelled",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "dead",
}
_STORED = {ours: theirs for theirs, ours in _STATUS.items()}
_DELETE_AT_ONCE = 500


def sqlite_url(path: Path) -> str:
    """The database URL of a SQLite file."""
    return f"sqlite:///{path.absolute()}"


def schema_of(node_id: str) -> str:
    """Each node keeps its jobs in a PostgreSQL schema of its own: its spool is local, so no other node can
    run them.
    """
    return f"pacs_node_{node_id}"


def prepare(database: str, node_id: str) -> None:
    """Create or migrate the engine's tables. Any process may call it at any time.

    Raises EngineError when the database cannot be reached or written.
    """
    _quiet()
    try:
        if database.startswith("sqlite:///"):
            # The journal mode is kept in the file, so setting it once is enough.
            connection = sqlite3.connect(database.removeprefix("sqlite:///"), timeout=30)
            try:
                connection.execute("pragma journal_mode=wal")
            finally:
                connection.close()
        DBOS.migrate(database, schema=schema_of(node_id))
    except (SQLAlchemyError, sqlite3.Error) as error:
        why = str(error.__cause__ or error).partition("\n")[0]
        raise EngineError(
            f"The job database {without_password(database)} cannot be used: {why}. "
            "Check that it is there and may be written (engine.database, node.state_dir)."
        ) from error


def without_password(database: str) -> str:
    """A database URL as it may be shown."""
    return make_url(database).render_as_string(hide_password=True)


def options(job: NewJob) -> dict[str, Any]:
    """How dbos wants an enqueued job described."""
    described: dict[str, Any] = {
        "workflow_name": job.kind,
        "workflow_id": job.id,
        "queue_name": job.queue,
        "priority": job.priority,
        "app_version": SCHEMA_VERSION,
        "application_name": APPLICATION,
        "attributes": {"queue": job.queue},
    }
    if job.delay > 0:
        described["delay_seconds"] = job.delay
    return described


class Client:
    """The jobs of one node, seen and changed from any process."""

    def __init__(self, database: str, node_id: str) -> None:
        """``database``: ``sqlite:////absolute/path`` or ``postgresql://…``; its tables are made if they are
        missing.
        """
        prepare(database, node_id)
        self._dbos = DBOSClient(
            system_database_url=database,
            dbos_system_schema=schema_of(node_id),
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            # An unreachable database is reported to the caller, who can answer its own peer, instead of
            # waited out.
            retry_connection_errors=False,
        )

    def close(self) -> None:
        """Close the connections to the database."""
        self._dbos.destroy()

    def enqueue(self, job: NewJob) -> None:
        """Enqueue a job durably; on return it survives a crash. An id that exists already is left as it is.

        Raises on a full disk or an unreachable database.
        """
        self._dbos.enqueue(options(job), dict(job.payload))

    def register_queue(self, name: str, concurrency: int, polling_seconds: float) -> None:
        """Say how many jobs of a queue one worker runs at once; kept in the database, so set before workers
        start.
        """
        # Not global_concurrency: that counts the rows which a dead worker left behind.
        self._dbos.register_queue(name, worker_concurrency=concurrency, polling_interval_sec=polling_seconds)

    def remove_idle_queues(self, keep: Collection[str]) -> None:
        """Forget the queues that are not to be kept and have no unfinished job."""
        for queue in self._dbos.list_queues():
            if queue.name not in keep and not self._dbos.list_queued_workflows(
                queue_name=queue.name, limit=1
            ):
                self._dbos.delete_queue(queue.name)

    def get(self, job_id: str) -> Job | None:
        """The job of that id, or ``None``."""
        found = self._dbos.list_workflows(workflow_ids=[job_id])
        return _job(found[0]) if found else None

    def find(
        self,
        *,
        prefix: str | Sequence[str] | None = None,
        kind: str | Sequence[str] | None = None,
        status: Iterable[Status] | None = None,
        ended_before: datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Job]:
        """Jobs whose id starts with ``prefix`` (or one of them), of that kind and status, oldest first."""
        rows = self._dbos.list_workflows(
            workflow_id_prefix=_listed(prefix),
            name=_listed(kind),
            status=None if status is None else [_STORED[s] for s in status],
            completed_before=None if ended_before is None else ended_before.isoformat(),
            limit=limit,
            sort_desc=newest_first,
        )
        return [_job(row) for row in rows]

    def tally(self, status: Iterable[Status]) -> Counter[tuple[str, Status, str]]:
        """How many jobs there are of each kind, status and queue, of the statuses asked for."""
        rows = self._dbos.list_workflows(
            status=[_STORED[s] for s in status], load_input=False, load_output=False
        )
        return Counter((job.kind, job.status, job.queue) for job in map(_job, rows))

    def steps(self, job_id: str) -> list[Step]:
        """The finished steps of a job, in order."""
        return [
            Step(
                name=row["function_name"],
                started=_time(row.get("started_at_epoch_ms")),
                ended=_time(row.get("completed_at_epoch_ms")),
                result=row["output"],
                error=None if row["error"] is None else str(row["error"]),
            )
            for row in self._dbos.list_workflow_steps(job_id)
        ]

    def cancel(self, job_id: str) -> Job | None:
        """Take a job out of its queue, or give up one that failed; a running one is stopped at its next step.

        ``None``: no such job. A job that is done is returned unchanged.
        """
        job = self.get(job_id)
        if job is None or job.status == "done":
            return job
        if job.status == "failed":
            # dbos cancels only what can still run: the queue of this name has no worker.
            self._dbos.rewind_workflow(job_id, queue_name="cancelled")
        self._dbos.cancel_workflow(job_id)
        return self.get(job_id)

    def retry(self, job_id: str) -> Job | None:
        """Run a failed, dead or cancelled job again, from the step at which it ended. ``None``: no such job.

        A job in any other state is returned unchanged.
        """
        job = self.get(job_id)
        if job is None or job.status not in UNSUCCESSFUL:
            return job
        if job.status == "failed":
            recorded = self._dbos.list_workflow_steps(job_id)
            failed = [row["function_id"] for row in recorded if row["error"] is not None]
            self._dbos.rewind_workflow(job_id, start_step=min(failed, default=1), queue_name=job.queue)
        else:
            self.hand_back([job])
        return self.get(job_id)

    def hand_back(self, jobs: Iterable[Job]) -> None:
        """Put jobs that are not done back into their queues with no starts counted against them."""
        for job in jobs:
            self._dbos.resume_workflow(job.id, queue_name=job.queue)

    def purge(self, job_ids: Sequence[str]) -> None:
        """Forget jobs and their steps for good."""
        for start in range(0, len(job_ids), _DELETE_AT_ONCE):
            self._dbos.delete_workflows(list(job_ids[start : start + _DELETE_AT_ONCE]))


def _listed(value: str | Sequence[str] | None) -> list[str] | None:
    if value is None:
        return None
    return [value] if isinstance(value, str) else list(value)


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _job(row: Any) -> Job:
    payload: dict[str, Any] = row.input["args"][0] if row.input and row.input["args"] else {}
    created = _time(row.created_at) or datetime.fromtimestamp(0, UTC)
    attributes = row.attributes or {}
    return Job(
        id=row.workflow_id,
        kind=row.name,
        key=str(payload.get("key", "")),
        status=_STATUS[row.status],
        # Cancelling and parking clear the queue's name in the row, so the job carries it too.
        queue=str(attributes.get("queue") or row.queue_name or ""),
        priority=row.priority or 0,
        created=created,
        updated=_time(row.updated_at) or created,
        attempts=row.recovery_attempts or 0,
        payload=payload,
        result=row.output,
        error=None
        if row.error is None
        else f"{getattr(row.error, 'name', type(row.error).__name__)}: {row.error}",
    )


def _quiet() -> None:
    """Route dbos's log through the node's own, warnings only, and never with a traceback.

    An exception's text can quote an element of a header; the node's log names types and places only, and the
    text stays in the job's record.
    """
    log = logging.getLogger("dbos")
    log.setLevel(logging.WARNING)
    if not log.handlers:  # dbos adds a console handler of its own unless there is one
        log.addHandler(logging.NullHandler())
        log.addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = record.exc_text = None
    return True
