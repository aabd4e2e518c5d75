"""The node's jobs: what happens to an object from the moment it is durable until its results are delivered.

    object/<key>            reads the header and decides; forwards the original at once; then
    analyse/<key>           one step for each task, its deliveries enqueued as soon as it is done; then, after
                            study.quiet_seconds,
    report/<key>/<n>        the study's report, unless more of the study is on its way: then that comes last
    deliver/<file>/<destination>/<attempt>      one attempt; a failed one enqueues the next (deliveries.py)

Failed tasks are done again by analyse/<key>/<n> (retry.py); commitments.py has the reports to requesters of
storage commitment.

<key> is the object's in the spool, ``<study>/<object>``. What a job has found out lies beside the object,
written before its step ends, so a step that runs twice finds or makes the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from pacs_node.config import Config
from pacs_node.dicom.files import check_uids, read_header
from pacs_node.engine.client import Client
from pacs_node.engine.engine import Engine, Run
from pacs_node.engine.job import JSON, ROUTINE, UNFINISHED, UNSUCCESSFUL, URGENT, Job, NewJob
from pacs_node.errors import Refused
from pacs_node.files import atomic_write, make_folder
from pacs_node.pipeline.analysis import Analyst, Source, open_source
from pacs_node.pipeline.commitments import CommitmentReports
from pacs_node.pipeline.deliveries import Deliveries
from pacs_node.pipeline.metrics import ROUTED, TASK_SECONDS
from pacs_node.pipeline.node import (
    ACCELERATOR_QUEUE,
    ANALYSE,
    COMMITMENT,
    DELIVER,
    DONE,
    FAILED,
    OBJECT,
    REPORT,
    REPORT_QUEUE,
    Node,
)
from pacs_node.pipeline.reporting import ROUTE_FILE, SOURCE_FILE, Reports
from pacs_node.receive.spool import REPORTS, RESULTS
from pacs_node.route import decide
from pacs_node.tasks import Task

log = logging.getLogger(__name__)

#: Analysis runs native code on bytes from outside: an image that ends the process three times is parked. The
#: other kinds run plain Python, and may be in the middle of something whenever that happens.
ANALYSE_STARTS, OTHER_STARTS = 3, 20
#: What is kept free for the engine's records; how much larger than its source a result may be; how often a
#: full disk is looked at again.
_ROOM_BYTES, _RESULT_FACTOR, _ROOM_SECONDS = 4 << 20, 4, 1.0
#: Requested Procedure Priority, and what older systems copy from the order (retired Study Priority).
_PRIORITIES = ("RequestedProcedurePriority", "StudyPriorityID")


class Jobs:
    """The handlers. ``current`` gives the configuration as it is when a job starts."""

    def __init__(self, node: Node, current: Callable[[], Config]) -> None:
        self._node, self._current = node, current
        self._reports = Reports(node)
        self._deliveries = Deliveries(node, current)
        self._analyst: Analyst | None = None
        self._open: tuple[str, Source] | None = None

    def register(self, engine: Engine) -> None:
        """Tell the engine which handler runs which kind."""
        engine.register(OBJECT, self.object, OTHER_STARTS)
        engine.register(ANALYSE, self.analyse, ANALYSE_STARTS)
        engine.register(REPORT, self.report, OTHER_STARTS)
        engine.register(DELIVER, self._deliveries.deliver, OTHER_STARTS)
        engine.register(COMMITMENT, CommitmentReports(self._node, self._current).report, OTHER_STARTS)

    def analyst(self) -> Analyst:
        """The models of the configuration as it is now. Raises ModelError."""
        config = self._current()
        if self._analyst is None or self._analyst.config != config:
            self._analyst = Analyst(config)
        return self._analyst

    # -- object ----------------------------------------------------------------------------------------------

    def object(self, run: Run, payload: dict[str, Any]) -> Any:
        """Decide about one object, forward it if the rule says so, and have it analysed if it is to be."""
        key = payload["key"]
        route = run.step("route", self._route, run, key)
        if route["forward_original"]:
            self._enqueue_deliveries(run, f"{key}/received", route["destinations"], route["priority"])
        if route["tasks"] and not route["refused"]:
            following = {"key": key, "route": route}
            job = NewJob(ANALYSE, f"{ANALYSE}/{key}", following, ACCELERATOR_QUEUE, route["priority"])
            run.enqueue(job)
        else:
            # A report that found this object still undecided has left the study to it.
            self._enqueue_report(run, key, route["priority"])
        return route

    def _route(self, run: Run, key: str) -> JSON:
        route = self._decision(key)
        self._write(key, ROUTE_FILE, route)
        refused = route["refused"]
        ROUTED.labels("refused" if refused else "analysed" if route["tasks"] else "kept").inc()
        log.info(
            "routed",
            extra={
                "job": run.job_id,
                "rule": route["rule"] or "none",
                "tasks": ",".join(route["tasks"]) or "none",
                "destinations": ",".join(route["destinations"]) or "none",
                "refused": refused["code"] if refused else "no",
            },
        )
        return route

    def _decision(self, key: str) -> dict[str, Any]:
        route: dict[str, Any] = {
            "rule": None,
            "tasks": [],
            "destinations": [],
            "forward_original": False,
            "own_result": False,
            "refused": None,
            "priority": ROUTINE,
        }
        record = self._node.spool.metadata(key)
        try:
            header = read_header(self._node.spool.received(key), any_uids=True)
        except Refused as refused:
            return route | {"refused": refusal(refused)}
        config = self._current()
        decision = decide(config.rules, header, record["calling_ae"], record["called_ae"])
        destinations = list(decision.destinations)
        if decision.own_result:
            # Back to where it came from it would go round and round; elsewhere the rule says whether.
            destinations = [
                name
                for name in destinations
                if getattr(config.destinations[name], "ae_title", None) != record["calling_ae"]
            ]
        reason = decision.refusal or (_uid_refusal(header) if decision.tasks else None)
        return route | {
            "rule": decision.rule,
            "tasks": [str(task) for task in decision.tasks],
            "destinations": destinations,
            "forward_original": decision.forward_original,
            "own_result": decision.own_result,
            "refused": refusal(reason) if reason else None,
            "priority": URGENT if is_urgent(header) else ROUTINE,
        }

    # -- analyse ---------------------------------------------------------------------------------------------

    def analyse(self, run: Run, payload: dict[str, Any]) -> Any:
        """Do the tasks that the rule wants, each in its own step, and enqueue what each has made."""
        key, route = payload["key"], payload["route"]
        refused = run.step("open", self._opened, run, key)
        outcomes: dict[str, JSON] = {}
        for task in [] if refused else route["tasks"]:
            outcome = run.step(task, self._task, run, key, task)
            outcomes[task] = outcome
            if outcome["status"] == DONE:
                self._enqueue_deliveries(
                    run, f"{key}/results/{task}", route["destinations"], route["priority"]
                )
        self._open = None
        self._enqueue_report(run, key, route["priority"])
        return {"refused": refused, "tasks": outcomes}

    def _opened(self, run: Run, key: str) -> Any:
        """Why the image is refused, or nothing."""
        try:
            source, refused = self._source(key), None
        except Refused as error:
            source, refused = None, refusal(error)
            log.info("refused", extra={"job": run.job_id, "code": error.code})
        warnings = source.radiograph.warnings if source else []
        self._write(key, SOURCE_FILE, {"refused": refused, "warnings": warnings})
        return refused

    def _source(self, key: str) -> Source:
        # Kept from one step of a job to the next, decoded again only after a restart.
        if self._open is None or self._open[0] != key:
            self._open = (key, open_source(self._node.spool.received(key), self._current()))
        return self._open[1]

    def _task(self, run: Run, key: str, name: str) -> Any:
        task = Task(name)
        received = datetime.fromisoformat(self._node.spool.metadata(key)["received_at"])
        self._wait_for_room(run, key)
        results = self._results(key)
        outcome = self.analyst().attempt(self._source(key), task, results / f"{task}.dcm", received)
        self._write(key, f"{task}.json", outcome)
        TASK_SECONDS.labels(name, outcome["status"]).observe(outcome["seconds"])
        log.info(
            "task " + outcome["status"],
            extra={"job": run.job_id, "task": name, "seconds": outcome["seconds"]},
        )
        return outcome

    def _wait_for_room(self, run: Run, key: str) -> None:
        """Wait until the disk has room for a result and for what the engine records of it.

        No other image could be analysed in the meantime, and a job that failed for it would need someone to
        retry it.
        """
        needed = _ROOM_BYTES + _RESULT_FACTOR * int(self._node.spool.metadata(key)["size"])
        waited = False
        while (free := self._node.spool.free_bytes()) < needed:
            if not waited:
                log.error(
                    "the disk is full: waiting until there is room for results",
                    extra={"job": run.job_id, "free_mb": free >> 20, "needed_mb": (needed >> 20) + 1},
                )
            waited = True
            time.sleep(_ROOM_SECONDS)
        if waited:
            log.info("there is room again", extra={"job": run.job_id})

    # -- report ----------------------------------------------------------------------------------------------

    def report(self, run: Run, payload: dict[str, Any]) -> Any:
        """Make the study's report if nothing more of the study is on its way, and enqueue it."""
        made = run.step("report", self._report, run, payload["key"])
        for name, files in made.get("files", {}).items():
            for file in files:
                self._deliveries.enqueue(run, file, name, payload["priority"])
        return made

    def _report(self, run: Run, key: str) -> Any:
        study = key.partition("/")[0]
        client = run.client
        under_way = client.find(prefix=[f"{OBJECT}/{study}/", f"{ANALYSE}/{study}/"], status=UNFINISHED)
        # This queue runs one job at a time, so two reports never leave the study to each other.
        later = client.find(prefix=f"{REPORT}/{study}/", status=["queued", "delayed"])
        waiting = [job.id for job in (*under_way, *later) if job.key != key]
        if waiting:
            log.info("report left to a later object", extra={"job": run.job_id, "waiting_for": waiting[0]})
            return {"left_to": waiting}
        made = self._reports.make(study, self._current().destinations)
        told = {k: v for k, v in made.items() if k not in ("destinations", "files")}
        log.info("report", extra={"job": run.job_id, **told})
        return made

    # -- maintenance -----------------------------------------------------------------------------------------

    def settle(self, client: Client) -> None:
        """See to it that a study gets its report although an object's job was parked, failed or cancelled.

        What such a job has not done is recorded as failed, which the report says; it is not a negative
        finding.
        """
        for job in client.find(kind=[OBJECT, ANALYSE], status=UNSUCCESSFUL):
            reports = client.find(prefix=f"{REPORT}/{job.key}/")
            if any(report.created >= job.updated for report in reports):
                continue
            reason = f"the analysis was {job.status}" + (f" ({job.error})" if job.error else "")
            for task in job.payload.get("route", {}).get("tasks", []):
                if not (self._results(job.key) / f"{task}.json").exists():
                    self._write(job.key, f"{task}.json", {"task": task, "status": FAILED, "error": reason})
            log.warning("object without a result", extra={"job": job.id, "status": job.status})
            client.enqueue(self._report_job(job.key, len(reports) + 1, job.priority))

    def purge(self, client: Client, now: datetime | None = None) -> int:
        """Remove what is older than the retention, with its jobs; the number of objects removed.

        Kept, however old, is what has unfinished jobs, and what could not be routed or delivered and nobody
        has given up.
        """
        cutoff = (now or datetime.now(UTC)) - timedelta(days=self._current().retention.days)

        def is_open(key: str) -> bool:
            jobs = _jobs_of(client, key) + _report_deliveries(client, key.partition("/")[0])
            return any(
                job.status in UNFINISHED
                or (job.kind in (OBJECT, DELIVER) and job.status in ("failed", "dead"))
                for job in jobs
            )

        removed = self._node.spool.purge(cutoff, is_open)
        self._node.commitments.purge(cutoff)
        unreported = {job.payload["verdict"] for job in client.find(kind=COMMITMENT, status=UNFINISHED)}
        self._node.verdicts.purge(cutoff, unreported)
        client.purge([job.id for job in client.find(kind=COMMITMENT, ended_before=cutoff)])
        for key in removed:
            client.purge([job.id for job in _jobs_of(client, key)])
        for study in {key.partition("/")[0] for key in removed} - set(self._node.spool.studies()):
            client.purge([job.id for job in _report_deliveries(client, study)])
        if removed:
            log.info("purged", extra={"objects": len(removed)})
        return len(removed)

    # -- what several of them need ---------------------------------------------------------------------------

    def _enqueue_deliveries(self, run: Run, file: str, destinations: Iterable[str], priority: int) -> None:
        for name in destinations:
            self._deliveries.enqueue(run, file, name, priority)

    def _enqueue_report(self, run: Run, key: str, priority: int) -> None:
        number = run.step("count reports", lambda: len(run.client.find(prefix=f"{REPORT}/{key}/")) + 1)
        run.enqueue(self._report_job(key, number, priority))

    def _report_job(self, key: str, number: int, priority: int) -> NewJob:
        payload: dict[str, JSON] = {"key": key, "priority": priority}
        delay = self._current().study.quiet_seconds
        return NewJob(REPORT, f"{REPORT}/{key}/{number}", payload, REPORT_QUEUE, priority, delay)

    def _results(self, key: str) -> Path:
        folder = self._node.spool.folder(key) / RESULTS
        make_folder(folder)
        return folder

    def _write(self, key: str, name: str, record: Mapping[str, JSON]) -> None:
        atomic_write(self._results(key) / name, json.dumps(record, indent=1, ensure_ascii=False).encode())


def refusal(refused: Refused) -> dict[str, JSON]:
    """A refusal as it is recorded."""
    return {"code": refused.code, "reason": refused.reason, "remedy": refused.remedy}


def _uid_refusal(header: Dataset) -> Refused | None:
    try:
        check_uids(header)
    except Refused as refused:
        return refused
    return None


def is_urgent(header: Dataset) -> bool:
    """Whether the request was STAT or HIGH (see _PRIORITIES)."""
    priorities = [str(header.get(keyword) or "") for keyword in _PRIORITIES]
    return any(priority.strip().upper() in ("STAT", "HIGH") for priority in priorities)


def _jobs_of(client: Client, key: str) -> list[Job]:
    # The first two by their very ids: another object's key may begin with this one.
    own = [client.get(f"{OBJECT}/{key}"), client.get(f"{ANALYSE}/{key}")]
    others = client.find(prefix=[f"{kind}/{key}/" for kind in (ANALYSE, REPORT, DELIVER)])
    return [job for job in own if job is not None] + others


def _report_deliveries(client: Client, study: str) -> list[Job]:
    return client.find(prefix=f"{DELIVER}/{study}/{REPORTS}/")
