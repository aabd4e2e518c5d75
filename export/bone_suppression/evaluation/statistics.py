"""Means with 95% intervals: by bootstrap over patients where there are enough, else each value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: Patients below which an interval by bootstrap would only look like one; draws of it.
ENOUGH, DRAWS = 8, 2000


def interval(
    values: Sequence[float],
    patients: Sequence[str],
    measure: Callable[[np.ndarray], float] = np.mean,
) -> tuple[float, float] | None:
    """95% interval of ``measure``: patients drawn with replacement, each with all of theirs; None of few."""
    everyone, owner = np.unique(np.asarray(patients), return_inverse=True)
    if len(everyone) < ENOUGH:
        return None
    groups = [np.flatnonzero(owner == number) for number in range(len(everyone))]
    rng = np.random.default_rng(0)
    array = np.asarray(values, np.float64)
    drawn = [
        measure(array[np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def summary(key: str, values: Sequence[float], patients: Sequence[str], digits: int) -> dict[str, Any]:
    """For the card: the mean as ``key``, with its interval ("…_95") or each value ("…_each")."""
    found: dict[str, Any] = {key: round(float(np.mean(values)), digits)}
    between = interval(values, patients)
    if between is None:
        return found | {f"{key}_each": [round(float(v), digits) for v in values]}
    return found | {f"{key}_95": [round(v, digits) for v in between]}


def shown(found: dict[str, Any], key: str, digits: int, sign: str = "") -> str:
    """A summary in a table's cell: mean [low, high], or mean (each)."""
    form = f"{sign}.{digits}f"
    between = found.get(f"{key}_95")
    inside = ", ".join(format(v, form) for v in between or found[f"{key}_each"])
    return f"{found[key]:{form}} " + (f"[{inside}]" if between else f"({inside})")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
