"""What a job is, seen from outside the engine. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from pacs_node.errors import PacsNodeError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Payload: TypeAlias = Mapping[str, JSON]

Status = Literal["queued", "delayed", "running", "done", "failed", "cancelled", "dead"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNFINISHED: tuple[Status, ...] = ("queued", "delayed", "running")
#: Ended without a result: ``failed`` raised, ``dead`` ended its process too often, ``cancelled`` by an
#: operator.
UNSUCCESSFUL: tuple[Status, ...] = ("failed", "dead", "cancelled")

URGENT, ROUTINE = 1, 5  # priorities: a lower number goes first


class EngineError(PacsNodeError):
    """The job database cannot be used."""


@dataclass(frozen=True)
class NewJob:
    """A job to be enqueued.

    Its ``id`` is its identity. ``priority`` 1 goes before 5; ``delay`` is in seconds.
    """

    kind: str
    id: str
    payload: Payload
    queue: str
    priority: int = ROUTINE
    delay: float = 0


@dataclass(frozen=True)
class Job:
    """One job as recorded.

    ``attempts`` counts how often it was started (1 for a job that ran once); ``created`` and ``updated`` are
    in UTC; ``result`` is what the handler returned (``None`` unless ``done``), ``error`` why it failed.
    """

    id: str
    kind: str
    key: str
    status: Status
    queue: str
    priority: int
    created: datetime
    updated: datetime
    attempts: int
    payload: dict[str, Any]
    result: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Step:
    """One finished step of a job: its name, when it ran (UTC), and what it gave or why it failed."""

    name: str
    started: datetime | None
    ended: datetime | None
    result: Any = None
    error: str | None = None
