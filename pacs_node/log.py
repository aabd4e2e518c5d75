"""The log: one line per event on stderr, ``time level process message key=value …``; no patient data.

UIDs, job ids, AE titles and error types may stand in it; names, ids and dates of patients and texts quoted
from a header may not.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ENGINES = frozenset(
    {"applicationID", "applicationVersion", "executorID", "operationUUID"}
)  # dbos adds these
_LOOKS_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789äöü_-+./:@%,;()[]#*~<>|&!?^$'"
)


class Line(logging.Formatter):
    """Formats a record and its ``extra`` fields as one line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; a traceback, if there is one, follows on the same line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = [when.replace("+00:00", "Z"), f"{record.levelname:<7}", self._process, record.getMessage()]
        parts += [
            f"{key}={_value(value)}" for key, value in vars(record).items() if key not in _OWN | _ENGINES
        ]
        if record.exc_info:
            parts.append(f"traceback={_value(self.formatException(record.exc_info))}")
        return " ".join(parts).replace("\n", "\\n")


def configure(process: str, level: str = "INFO") -> None:
    """Send this process's log to stderr, each line marked with ``process``; called again, it changes the
    level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # What it says of every association our own lines say better, and its errors come to us as results.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    # It quotes the values that it finds wrong.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text and _LOOKS_PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)
