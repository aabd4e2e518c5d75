"""``pacs-node jobs``: what the node has done, is doing and could not do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pacs_node.engine.client import Client
    from pacs_node.engine.job import Job

_CONFIG = typer.Option("--config", "-c", help="Configuration file of the node.", show_default=False)
_JSON = typer.Option("--json", help="Write JSON to stdout.")
_IDS = typer.Argument(help="Ids of jobs, as jobs list gives them.", show_default=False)


def register(app: typer.Typer) -> None:
    """Add the group of commands to the application."""
    jobs = typer.Typer(no_args_is_help=True, help="The node's jobs: list, show, retry, cancel.")
    app.add_typer(jobs, name="jobs")

    @jobs.command("list")
    def list_jobs(
        status: Annotated[
            list[str] | None,
            typer.Option(
                help="Only queued, delayed, running, done, failed, cancelled or dead jobs; may be repeated.",
                show_default=False,
            ),
        ] = None,
        prefix: Annotated[
            str | None,
            typer.Option(help="Only jobs whose id begins so, such as deliver/.", show_default=False),
        ] = None,
        limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
        as_json: Annotated[bool, _JSON] = False,
        config: Annotated[Path | None, _CONFIG] = None,
    ) -> None:
        """List jobs, the newest first.

        Example: [bold]pacs-node jobs list --status failed --status dead[/bold]
        """
        from pacs_node.engine.job import STATUSES

        wrong = [word for word in status or [] if word not in STATUSES]
        if wrong:
            raise typer.BadParameter(f"{wrong[0]!r} is none of {', '.join(STATUSES)}", param_hint="--status")
        wanted = [known for known in STATUSES if known in status] if status else None
        with _client(config) as client:
            found = client.find(prefix=prefix, status=wanted, limit=limit, newest_first=True)
        if as_json:
            typer.echo(json.dumps([as_dict(job) for job in found], indent=2, ensure_ascii=False))
            return
        from pacs_node.pipeline.retry import failed_tasks

        for job in found:
            failed = ", ".join(failed_tasks(job))
            trouble = job.error or (f"failed in it: {failed}" if failed else "")
            typer.echo(f"{_local(job.updated)}  {job.status:<9}  {job.id}{f'  {trouble}' if trouble else ''}")

    @jobs.command("show")
    def show(
        job_id: Annotated[str, typer.Argument(help="Id of the job.", show_default=False)],
        as_json: Annotated[bool, _JSON] = False,
        config: Annotated[Path | None, _CONFIG] = None,
    ) -> None:
        """Show one job: its state, its steps with their times, its result or error.

        Example: [bold]pacs-node jobs show object/3f…/9a…[/bold]
        """
        with _client(config) as client:
            job = client.get(job_id)
            steps = client.steps(job_id) if job else []
        if job is None:
            _missing(job_id)
        record = as_dict(job) | {
            "steps": [
                {
                    "name": s.name,
                    "started": _iso(s.started),
                    "ended": _iso(s.ended),
                    "result": s.result,
                    "error": s.error,
                }
                for s in steps
            ]
        }
        if as_json:
            typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
            return
        for name in ("id", "status", "queue", "priority", "created", "updated", "attempts", "error"):
            if record[name] is not None:
                typer.echo(f"{name:<9} {record[name]}")
        typer.echo(f"{'result':<9} {json.dumps(job.result, ensure_ascii=False)}")
        for step in steps:
            seconds = (step.ended - step.started).total_seconds() if step.ended and step.started else 0.0
            typer.echo(f"  {seconds:8.3f} s  {step.name}{f'  {step.error}' if step.error else ''}")

    @jobs.command("retry")
    def retry(
        job_ids: Annotated[list[str] | None, _IDS] = None,
        unsuccessful: Annotated[bool, typer.Option("--all", help="All that have failed.")] = False,
        as_json: Annotated[bool, _JSON] = False,
        config: Annotated[Path | None, _CONFIG] = None,
    ) -> None:
        """Run failed, dead or cancelled jobs again, from where they ended.

        Of an analysis that is done, the tasks that failed in it are done again, by a job of their own.

        Example: [bold]pacs-node jobs retry deliver/3f…/9a…/received/PACS/12[/bold]
        """
        from pacs_node.pipeline.retry import retry, to_retry

        if unsuccessful == bool(job_ids):
            raise typer.BadParameter("give ids of jobs, or --all", param_hint="JOB_IDS")
        if unsuccessful:
            with _client(config) as client:
                job_ids = to_retry(client)
        _change(job_ids or [], retry, as_json=as_json, config=config)

    @jobs.command("cancel")
    def cancel(
        job_ids: Annotated[list[str], _IDS],
        as_json: Annotated[bool, _JSON] = False,
        config: Annotated[Path | None, _CONFIG] = None,
    ) -> None:
        """Take jobs out of their queues, or give up failed ones, so that their objects may be removed in
        time.

        Example: [bold]pacs-node jobs cancel analyse/3f…/9a…[/bold]
        """
        _change(job_ids, lambda client, job_id: client.cancel(job_id), as_json=as_json, config=config)


def as_dict(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    return {**vars(job), "created": _iso(job.created), "updated": _iso(job.updated)}


def _change(
    job_ids: list[str], action: Callable[[Client, str], Job | None], *, as_json: bool, config: Path | None
) -> None:
    with _client(config) as client:
        for job_id in job_ids:
            if client.get(job_id) is None:
                _missing(job_id)
        changed = [job for job_id in job_ids if (job := action(client, job_id)) is not None]
    if as_json:
        typer.echo(json.dumps([as_dict(job) for job in changed], indent=2, ensure_ascii=False))
        return
    for job in changed:
        typer.echo(f"{job.status:<9}  {job.id}")


@contextmanager
def _client(config: Path | None) -> Iterator[Client]:
    from pacs_node.cli.messages import ends_readably

    with ends_readably():
        from pacs_node.config.load import load, locate
        from pacs_node.engine.client import Client
        from pacs_node.pipeline.node import Node

        node = Node.open(load(locate(config)))
        client = Client(node.database, node.node_id)
        try:
            yield client
        finally:
            client.close()


def _missing(job_id: str) -> NoReturn:
    typer.echo(f"There is no job {job_id!r}. See: pacs-node jobs list", err=True)
    raise typer.Exit(1)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
