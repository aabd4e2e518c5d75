"""``pacs-node analyze``: the pipeline on files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pacs_node.tasks import Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command()
    def analyze(
        paths: Annotated[
            list[Path], typer.Argument(help="DICOM files, or folders of them.", show_default=False)
        ],
        out: Annotated[
            Path,
            typer.Option("--out", "-o", help="Folder for the results; made if need be.", show_default=False),
        ],
        task: Annotated[
            list[Task] | None,
            typer.Option(help="Only this task; may be repeated. Default: all three.", show_default=False),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Write all results to stdout as JSON.")] = False,
        config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                "-c",
                envvar="PACS_NODE_CONFIG",
                help="Configuration whose models, limits and providers are used.",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        """Analyse DICOM files without a network: derived images, a report and report.json for each.

        Example: [bold]pacs-node analyze study/ --out results --json > results.json[/bold]

        Exit code 1 if any input was refused or any task failed; report.json in its folder says why.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_analyze(paths, out, task or list(Task), as_json=as_json, config_path=config))


def _analyze(
    paths: list[Path], out: Path, tasks: list[Task], *, as_json: bool, config_path: Path | None
) -> int:
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from pacs_node.config import Config, load
    from pacs_node.pipeline.analysis import Analyst
    from pacs_node.pipeline.files import analyse_files, collect, succeeded

    # What pydicom and decoders think of odd values comes as refusals and warnings of the report.
    warnings.simplefilter("ignore")
    files = collect(paths)
    analyst = Analyst(load(config_path) if config_path else Config())
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        records = analyse_files(
            files, out, analyst, list(dict.fromkeys(tasks)), _Bars(progress, console, len(files))
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), "results": records}, indent=2, ensure_ascii=False))
    return 0 if all(succeeded(record) for record in records) else 1


class _Bars:
    """Progress on the terminal: a bar for the files, a bar for the task, a line for each finished file."""

    def __init__(self, progress: Progress, console: Console, files: int) -> None:
        self._progress, self._console = progress, console
        self._files = progress.add_task("files", total=files)
        self._task = progress.add_task("", total=1)

    def begin(self, path: Path, number: int, of: int) -> None:
        self._progress.update(self._files, completed=number - 1, description=f"file {number} of {of}")

    def task(self, task: Task, done: int, of: int) -> None:
        self._progress.update(self._task, description=task.value, completed=done, total=of)

    def end(self, path: Path, record: dict[str, Any]) -> None:
        self._progress.update(self._files, advance=1)
        self._console.print(f"{path.name}: {summary(record)}", markup=False, highlight=False)


def summary(record: dict[str, Any]) -> str:
    """What came of one input, in one line."""
    if record["refused"]:
        return f"refused ({record['refused_code']}): {record['refused']}"
    parts = []
    for name, outcome in record["tasks"].items():
        if outcome["status"] != "done":
            parts.append(f"{name} {outcome['status']}: {outcome['error']}")
            continue
        findings = ", ".join(
            f"{f['name']} {f['decision']} ({f['score']:.3g}, threshold {f['threshold']:.3g})"
            for f in outcome.get("findings", [])
        )
        parts.append(f"{name} {findings or 'done'} in {outcome['seconds']:.1f} s")
    return "; ".join(parts)
