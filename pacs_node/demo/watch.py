"""Follows the node's jobs from outside, as `pacs-node jobs` does, and turns them into steps of the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pacs_node.config import load
from pacs_node.demo.outcome import Bar, ImageOutcome, NotAnalysed
from pacs_node.engine.client import Client
from pacs_node.engine.job import UNFINISHED, UNSUCCESSFUL, Job, Step
from pacs_node.pipeline.node import ANALYSE, DELIVER, OBJECT, REPORT, Node
from pacs_node.receive.spool import REPORTS
from pacs_node.tasks import Task

RECEIVE, ROUTE, REPORTING, DELIVERY = "receive", "route", "report", "deliver"
STEPS = (RECEIVE, ROUTE, *(task.value for task in Task), REPORTING, DELIVERY)

State = Literal["waiting", "running", "done", "failed", "skipped"]


@dataclass
class Progress:
    """How far one step of one image is: ``seconds`` it took or takes, ``note`` for what it says beside."""

    state: State = "waiting"
    seconds: float | None = None
    note: str = ""


@dataclass
class Seen:
    """One image as the node's records show it now."""

    image: ImageOutcome
    key: str = ""
    progress: dict[str, Progress] = field(default_factory=lambda: {step: Progress() for step in STEPS})


class Watcher:
    """Reads the jobs of the node configured at ``config_path``; ``begun``: when sending began (epoch)."""

    def __init__(self, config_path: Path, images: Sequence[ImageOutcome], begun: float) -> None:
        self._node = Node.open(load(config_path))
        self._client = Client(self._node.database, self._node.node_id)
        self._begun = begun
        self.seen = [Seen(image) for image in images]
        self.study_bars: list[Bar] = []
        self.failures: list[str] = []
        self._keys: dict[str, tuple[str, float]] = {}
        self._steps: dict[str, list[Step]] = {}

    def close(self) -> None:
        """Close the connection to the jobs."""
        self._client.close()

    def poll(self, now: float) -> bool:
        """Read everything again; whether all is done: received, decided, analysed, reported, delivered."""
        self._find_keys()
        jobs = self._client.find()
        by_id = {job.id: job for job in jobs}
        previous = 0.0
        complete = True
        for seen in sorted(self.seen, key=lambda s: self._arrival(s)):
            seen.image.bars = []
            found = self._keys.get(seen.image.sop_instance_uid)
            if found is None:
                complete = False
                continue
            seen.key, arrived = found
            self._bar(seen, RECEIVE, Bar("receive", previous, arrived))
            previous = arrived
            self._follow(seen, by_id, jobs, now)
            reports = [job for job in jobs if job.id.startswith(f"{REPORT}/{seen.key}/")]
            complete = complete and any(job.status not in UNFINISHED for job in reports)
        self._follow_studies(jobs, now)
        self.failures = [
            f"{job.id.partition('/')[0]} job: {job.error or job.status}"
            for job in jobs
            if job.status in UNSUCCESSFUL
        ]
        return complete and all(job.status not in UNFINISHED for job in jobs)

    # -- one image -------------------------------------------------------------------------------------------

    def _follow(self, seen: Seen, by_id: dict[str, Job], jobs: list[Job], now: float) -> None:
        routing, analysis = by_id.get(f"{OBJECT}/{seen.key}"), by_id.get(f"{ANALYSE}/{seen.key}")
        route: dict[str, Any] = {}
        if routing is not None:
            self._follow_steps(seen, routing, {"route": ROUTE}, now)
            route = routing.result or {}
            if route.get("refused"):
                self._refuse(seen, route["refused"])
        if analysis is not None:
            names = {"open": "decode", **{task.value: task.value for task in Task}}
            self._follow_steps(seen, analysis, names, now)
            for step in self._steps_of(analysis):
                if step.name == "open" and step.result:
                    self._refuse(seen, step.result)
                elif step.name in list(Task) and step.result:
                    seen.image.tasks[Task(step.name)] = step.result
            self._note_tasks(seen)
        elif (
            routing is not None
            and routing.status == "done"
            and not seen.image.refused
            and not route.get("tasks")
        ):
            seen.image.refused = NotAnalysed(
                "the node's own result" if route.get("own_result") else "no rule wants anything of it"
            )
        if seen.image.refused:
            for task in Task:
                seen.progress[task.value] = Progress("skipped")
        self._follow_deliveries(seen, jobs)

    def _follow_steps(self, seen: Seen, job: Job, names: dict[str, str], now: float) -> None:
        """Record the finished steps of a job, and take the next one as running."""
        steps = self._steps_of(job)
        last = self._since(job.created)
        for step in steps:
            if step.name in names and step.started and step.ended:
                bar = Bar(names[step.name], self._since(step.started), self._since(step.ended))
                self._bar(seen, names[step.name], bar, failed=step.error is not None)
            last = max(last, self._since(step.ended)) if step.ended else last
        if job.status != "running":
            return
        finished = {step.name for step in steps}
        following = next((names[name] for name in names if name not in finished), None)
        if following in seen.progress and seen.progress[following].state == "waiting":
            seen.progress[following] = Progress("running")
        if following in seen.progress:
            seen.progress[following].seconds = max(0.0, now - self._begun - last)

    def _note_tasks(self, seen: Seen) -> None:
        for task, outcome in seen.image.tasks.items():
            if outcome["status"] != "done":
                seen.progress[task.value].state = "failed"
                seen.progress[task.value].note = str(outcome.get("error", ""))
        seen.image.warnings = [
            str(warning)
            for outcome in seen.image.tasks.values()
            for warning in outcome.get("parameters", {}).get("warnings", [])
        ]

    def _follow_deliveries(self, seen: Seen, jobs: list[Job]) -> None:
        mine = [job for job in jobs if job.kind == DELIVER and job.id.startswith(f"{DELIVER}/{seen.key}/")]
        spent = 0.0
        for job in mine:
            for bar in self._delivery_bars(job):
                seen.image.bars.append(bar)
                spent += bar.seconds
        if mine:
            analysed = all(p.state not in ("waiting", "running") for p in self._tasks_of(seen))
            settled = analysed and all(job.status not in UNFINISHED for job in mine)
            lost = any(job.status in UNSUCCESSFUL for job in mine)
            done = sum(job.status == "done" for job in mine)
            state: State = "failed" if lost else "done" if settled else "running"
            seen.progress[DELIVERY] = Progress(state, spent, f"{done} of {len(mine)}")

    def _tasks_of(self, seen: Seen) -> list[Progress]:
        return [seen.progress[task.value] for task in Task]

    def _delivery_bars(self, job: Job) -> list[Bar]:
        name = job.payload["file"].rpartition("/")[2]
        what = (
            "original" if name == "received" else "report" if f"/{REPORTS}/" in job.payload["file"] else name
        )
        again = f", attempt {job.payload['attempt']}" if job.payload["attempt"] > 1 else ""
        return [
            Bar(f"deliver {what}", self._since(step.started), self._since(step.ended), again.strip(", "))
            for step in self._steps_of(job)
            if step.name == "send" and step.started and step.ended
        ]

    def _refuse(self, seen: Seen, refusal: dict[str, Any]) -> None:
        seen.image.refused = NotAnalysed(str(refusal["reason"]), str(refusal.get("remedy", "")))

    # -- the study -------------------------------------------------------------------------------------------

    def _follow_studies(self, jobs: list[Job], now: float) -> None:
        self.study_bars = []
        for study in dict.fromkeys(seen.key.partition("/")[0] for seen in self.seen if seen.key):
            mine = [seen for seen in self.seen if seen.key.startswith(f"{study}/")]
            progress = Progress()
            for job in jobs:
                if job.kind == REPORT and job.id.startswith(f"{REPORT}/{study}/"):
                    made = job.result or {}
                    for step in self._steps_of(job):
                        if step.name == "report" and step.started and step.ended and "file" in made:
                            bar = Bar("report", self._since(step.started), self._since(step.ended))
                            self.study_bars.append(bar)
                            progress = Progress("done", bar.seconds)
                    if "nothing" in made and progress.state == "waiting":
                        progress = Progress("skipped", None, str(made["nothing"]))
                    if job.status in ("failed", "dead"):
                        progress = Progress("failed", None, job.error or "")
                if job.kind == DELIVER and job.id.startswith(f"{DELIVER}/{study}/{REPORTS}/"):
                    self.study_bars += self._delivery_bars(job)
            for seen in mine:
                seen.progress[REPORTING] = progress

    # -- small things ----------------------------------------------------------------------------------------

    def _find_keys(self) -> None:
        if len(self._keys) == len(self.seen):
            return
        spool = self._node.spool
        for study in spool.studies():
            for key in spool.objects(study):
                record = spool.metadata(key)
                arrived = datetime.fromisoformat(record["received_at"])
                self._keys.setdefault(record["sop_instance_uid"], (key, self._since(arrived)))

    def _arrival(self, seen: Seen) -> float:
        return self._keys.get(seen.image.sop_instance_uid, ("", float("inf")))[1]

    def _bar(self, seen: Seen, step: str, bar: Bar, *, failed: bool = False) -> None:
        seen.image.bars.append(bar)
        if step in seen.progress:
            seen.progress[step] = Progress("failed" if failed else "done", bar.seconds)

    def _steps_of(self, job: Job) -> list[Step]:
        """The finished steps of a job; asked for once more only while it can still have new ones."""
        if job.status in ("queued", "delayed"):
            return []
        if job.id not in self._steps:
            steps = self._client.steps(job.id)
            if job.status == "running":
                return steps
            self._steps[job.id] = steps
        return self._steps[job.id]

    def _since(self, when: datetime | None) -> float:
        return 0.0 if when is None else max(0.0, when.timestamp() - self._begun)
