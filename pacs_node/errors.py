"""What can go wrong, as one tree.

PacsNodeError
 ├── ConfigurationError   the configuration is wrong: every problem with file, line and remedy
 ├── Refused              this input is not analysed, and why (an outcome, not a failure)
 ├── ModelError           a model cannot be loaded or run as its card says
 ├── OutputError          an output of ours failed its own check and was not sent
 └── DeliveryError        a destination did not take an object
      └── Unwanted        and is not to have it any more: nothing is to be tried again or given up
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PacsNodeError(Exception):
    """Base of every error that the node raises on purpose; its text is fit to be shown to a user."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a configuration file.

    ``line`` and ``column`` count from 1; ``key`` is the dotted path in the file, ``value`` what stands there.
    """

    file: str
    line: int | None
    column: int | None
    key: str
    value: str
    message: str
    remedy: str
    severity: str = "error"  # or "warning"

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column or 1}"
        value = f" ({self.value})" if self.value else ""
        return f"{place}: {self.key}{value}: {self.message}. {self.remedy}"


class ConfigurationError(PacsNodeError):
    """The configuration cannot be used. ``problems`` holds all of them, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class Refused(PacsNodeError):
    """An input that the node does not analyse: kept, recorded and routed, but no result is made of it.

    ``code`` is a stable word that scripts may test (``no-pixel-data``, ``not-chest`` …); ``reason`` says
    what, where and why; ``remedy`` what the sender can do.
    """

    def __init__(self, code: str, reason: str, remedy: str = "") -> None:
        self.code, self.reason, self.remedy = code, reason, remedy
        super().__init__(f"{reason}. {remedy}" if remedy else reason)


class ModelError(PacsNodeError):
    """A model is missing, altered, or does not do what its card says."""


class OutputError(PacsNodeError):
    """An output failed its self-check; it is not sent."""


class DeliveryError(PacsNodeError):
    """A destination did not take an object. ``transient`` says whether trying again can help."""

    def __init__(self, destination: str, reason: str, *, transient: bool = True) -> None:
        self.destination, self.reason, self.transient = destination, reason, transient
        super().__init__(f"{destination}: {reason}")


class Unwanted(DeliveryError):
    """The destination is not to have this object any more: the study that it belongs to was deleted there."""

    def __init__(self, destination: str, reason: str) -> None:
        super().__init__(destination, reason, transient=False)
