"""The demonstration on the terminal: a live table where there is one, plain lines where there is not."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pacs_node.demo.watch import STEPS, Progress, Seen
from pacs_node.tasks import Task

HEADINGS = {
    Task.BONE_SUPPRESSION.value: "bone suppr.",
    Task.RESTORATION.value: "restoration",
    Task.ANOMALY.value: "anomaly",
}
MAX_ROWS = 12
_MARKS = {"done": "✓", "failed": "✗", "skipped": "–", "waiting": "·"}
_STYLES = {"done": "green", "failed": "bold red", "skipped": "dim", "waiting": "dim"}


def say(console: Console, text: str) -> None:
    """A plain line, whole where the output is no terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Display:
    """Shows each step of each image with its time. ``steps`` says how many sampling steps a task takes."""

    def __init__(self, console: Console, sampling: dict[str, str]) -> None:
        self._console, self._sampling = console, sampling
        self._live: Live | None = None
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, seen: Sequence[Seen], elapsed: float) -> None:
        """What is known now."""
        if self._live is not None:
            self._live.update(self._table(seen, elapsed))
            return
        for one in seen:
            for step, progress in one.progress.items():
                self._tell(one, step, progress)

    def _tell(self, one: Seen, step: str, progress: Progress) -> None:
        ended = progress.state in ("done", "failed") or (progress.state == "skipped" and progress.note)
        where = f"{one.image.number}", step
        if not ended or where in self._told:
            return
        self._told.add(where)
        took = "" if progress.seconds is None else f" {progress.seconds:.2f} s"
        extra = self._sampling.get(step, "") if progress.state == "done" else progress.note
        say(
            self._console,
            f"image {one.image.number}: {step.replace('_', ' ')} {progress.state}{took}"
            + (f" ({extra or progress.note})" if extra or progress.note else ""),
        )

    def _table(self, seen: Sequence[Seen], elapsed: float) -> Table:
        table = Table(
            box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=f"{elapsed:.0f} s", caption_justify="left"
        )
        table.add_column("image", no_wrap=True)
        for step in STEPS:
            heading = HEADINGS.get(step, step)
            under = self._sampling.get(step)
            table.add_column(
                f"{heading}\n[dim]{escape(under)}[/dim]" if under else f"{heading}\n", no_wrap=True
            )
        open_first = sorted(seen, key=lambda one: all(p.state == "done" for p in one.progress.values()))
        for one in sorted(open_first[:MAX_ROWS], key=lambda one: one.image.number):
            cells = [self._cell(one.progress[step]) for step in STEPS]
            table.add_row(f"{one.image.number} {escape(one.image.file[:10])}", *cells)
        if len(seen) > MAX_ROWS:
            table.add_row(f"… {len(seen) - MAX_ROWS} more")
        return table

    def _cell(self, progress: Progress) -> Text | Spinner:
        took = "" if progress.seconds is None else f" {progress.seconds:.1f} s"
        if progress.state == "running":
            return Spinner("dots", text=Text(took.strip() or progress.note), style="cyan")
        return Text(_MARKS[progress.state] + took, style=_STYLES[progress.state])
