"""What one run of the demonstration has shown: plain data, from which the page is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pacs_node.tasks import Task


@dataclass(frozen=True)
class Bar:
    """One step of the way: when it began and ended, in seconds from the start of sending."""

    step: str
    begin: float
    end: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True)
class NotAnalysed:
    """Why an image was not analysed, as the node says it."""

    reason: str
    remedy: str = ""


@dataclass
class ImageOutcome:
    """One image that was sent, and what came of it.

    ``tasks`` maps a task to what the node recorded of it (status, model, parameters, findings, error,
    sop_instance_uid of its result). ``refused`` says why there is none.
    """

    number: int
    file: str
    sop_instance_uid: str
    tasks: dict[Task, dict[str, Any]] = field(default_factory=dict)
    refused: NotAnalysed | None = None
    warnings: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass
class Outcome:
    """A whole run. ``received`` maps SOP Instance UIDs to the files that the destination has written."""

    synthetic: bool
    started: str
    sender: str
    seconds: float = 0.0
    images: list[ImageOutcome] = field(default_factory=list)
    not_sent: list[tuple[str, NotAnalysed]] = field(default_factory=list)
    study_bars: list[Bar] = field(default_factory=list)
    received: dict[str, Path] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether every input was analysed and every task and delivery done."""
        done = all(t["status"] == "done" for image in self.images for t in image.tasks.values())
        return done and not (
            self.failures or self.not_sent or any(image.refused is not None for image in self.images)
        )
