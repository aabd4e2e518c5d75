"""Doing again what was not done: a job that ended without a result, or the tasks that failed in an analysis.

An analysis is done although one of its tasks has failed. To do that task again is a job of its own, the next
of the object: ``analyse/<key>``, ``analyse/<key>/2``, ``analyse/<key>/3`` … It does the failed tasks only;
their results have the UIDs that they would have had, are delivered, and the report is made again.
"""

from __future__ import annotations

from pacs_node.engine.client import Client
from pacs_node.engine.job import UNSUCCESSFUL, Job, NewJob
from pacs_node.pipeline.node import ANALYSE, FAILED


def failed_tasks(job: Job) -> list[str]:
    """The tasks that have failed in a job that is done; none if it is no analysis."""
    if job.kind != ANALYSE or job.status != "done":
        return []
    return [task for task, outcome in job.result["tasks"].items() if outcome["status"] == FAILED]


def analyses(client: Client, key: str) -> list[Job]:
    """The analyses of an object, the latest last."""
    first = client.get(f"{ANALYSE}/{key}")
    return [] if first is None else [first, *client.find(prefix=f"{ANALYSE}/{key}/")]


def to_retry(client: Client) -> list[str]:
    """The ids of all jobs that ``retry`` would do something about, cancelled ones left alone."""
    latest = {job.key: job for job in client.find(kind=ANALYSE)}
    return [job.id for job in client.find(status=["failed", "dead"])] + [
        job.id for job in latest.values() if failed_tasks(job)
    ]


def retry(client: Client, job_id: str) -> Job | None:
    """Run a failed, dead or cancelled job again, or the failed tasks of an analysis that is done.

    The job that now does it; the job itself if there is nothing to be done; ``None``: no such job.
    """
    job = client.get(job_id)
    if job is None or job.kind != ANALYSE:
        return client.retry(job_id)
    tried = analyses(client, job.key)
    last = tried[-1]
    if last.status in UNSUCCESSFUL:
        return client.retry(last.id)
    failed = failed_tasks(last)
    if not failed:
        return last
    route = {**last.payload["route"], "tasks": failed}
    again = f"{ANALYSE}/{job.key}/{len(tried) + 1}"
    client.enqueue(NewJob(ANALYSE, again, {"key": job.key, "route": route}, last.queue, last.priority))
    return client.get(again)
