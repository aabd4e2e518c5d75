"""Words that depend on numbers."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``1 day``, ``2 days``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
