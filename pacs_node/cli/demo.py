"""``pacs-node demo``: the whole node on one machine, on a synthetic study or the user's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command()
    def demo(
        paths: Annotated[
            list[Path] | None,
            typer.Argument(help="DICOM files or folders. Default: a synthetic study.", show_default=False),
        ] = None,
        out: Annotated[
            Path, typer.Option("--out", "-o", help="Folder for the page and the received objects.")
        ] = Path("demo-out"),
    ) -> None:
        """Show the node at work: send it a study by C-STORE, follow every step, make a page of the results.

        Everything runs on this machine and nothing leaves it: the node and an archive that takes its results,
        both on free ports of 127.0.0.1, are started for this and ended afterwards.

        Example: [bold]pacs-node demo[/bold] or [bold]pacs-node demo my-study/ --out /tmp/demo[/bold]

        Exit code 1 if anything was refused or failed; the page says why.
        """
        from pacs_node.cli.messages import ends_readably

        with ends_readably():
            raise typer.Exit(_demo(paths or [], out))


def _demo(paths: list[Path], out: Path) -> int:
    import signal

    from rich.console import Console

    from pacs_node.demo.progress import say
    from pacs_node.demo.run import PAGE, run

    # A terminal that is closed and a service manager want the same as Ctrl-C: everything ended in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    console = Console()
    try:
        outcome = run(paths, out, console)
    except KeyboardInterrupt:
        console.print("interrupted; the node is stopped")
        return 130
    problems = [*(f"{name}: {why.reason}" for name, why in outcome.not_sent)]
    problems += [f"{i.file}: refused: {i.refused.reason}" for i in outcome.images if i.refused]
    problems += [
        f"{i.file}: {task} {t['status']}: {t.get('error', '')}"
        for i in outcome.images
        for task, t in i.tasks.items()
        if t["status"] != "done"
    ]
    problems += outcome.failures
    took = f"{len(outcome.received)} objects at the archive in {outcome.seconds:.1f} s"
    for line in (*problems, took, f"page: {(out / PAGE).resolve()}"):
        say(console, line)
    return 0 if outcome.succeeded else 1
