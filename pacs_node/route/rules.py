"""Rules against a header: the first rule whose conditions all hold is the one that fires.

What the comparisons mean:

- Values are compared without their padding (PS3.5 section 6.2); CS and PN without regard to case; numbers,
  ages, dates and times as such (``"2.50"`` equals 2.5, ``018M`` lies in the range from 1 to 2 years).
- A multi-valued attribute fulfils a comparison if any of its values does.
- An attribute that is absent or empty fulfils no comparison: only ``present: false``, and ``not`` of a
  comparison. So ``BodyPartExamined: CHEST`` does not match a header without it, and ``BodyPartExamined: {not:
  HAND}`` does.
- A value that is not of its attribute's kind (an age ``ABC``) equals nothing and lies in no range, but is
  present.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from pacs_node.config.attributes import ASSOCIATION, comparable, texts
from pacs_node.config.model import Condition, Rule
from pacs_node.dicom.identity import is_own_result
from pacs_node.errors import Refused
from pacs_node.route.scope import out_of_scope
from pacs_node.tasks import Task


@dataclass(frozen=True)
class ConditionTrace:
    """One condition against one header. ``found`` is what the header says: it may identify a patient, so it
    is for the console and never for a log."""

    key: str
    expected: str
    found: str
    matched: bool


@dataclass(frozen=True)
class RuleTrace:
    """One rule against one header. ``matched``: all its conditions hold; ``fired``: it is the first such
    rule."""

    name: str
    matched: bool
    fired: bool
    conditions: tuple[ConditionTrace, ...]


@dataclass(frozen=True)
class Decision:
    """What is done with one object, and why.

    ``tasks`` is what will be made: none for an own result or where ``refusal`` says why the object is not
    analysed; ``asked`` is what the rule asked for. Destinations and forwarding hold for refused objects too.
    """

    rule: str | None
    tasks: tuple[Task, ...]
    destinations: tuple[str, ...]
    forward_original: bool
    refusal: Refused | None
    own_result: bool
    asked: tuple[Task, ...]
    trace: tuple[RuleTrace, ...]


def decide(rules: Sequence[Rule], header: Dataset, calling_ae: str = "", called_ae: str = "") -> Decision:
    """Match the rules in their order; ``header`` needs no pixels. Never raises for what a header holds."""
    association = {"calling_ae": calling_ae, "called_ae": called_ae}
    trace: list[RuleTrace] = []
    fired: Rule | None = None
    for rule in rules:
        conditions = tuple(
            _condition(key, condition, header, association) for key, condition in rule.when.items()
        )
        matched = all(c.matched for c in conditions)
        trace.append(RuleTrace(rule.name, matched, matched and fired is None, conditions))
        if matched and fired is None:
            fired = rule
    own = is_own_result(header)
    if fired is None:
        return Decision(None, (), (), False, None, own, (), tuple(trace))
    refusal = out_of_scope(header) if fired.tasks and not own else None
    return Decision(
        rule=fired.name,
        tasks=() if own or refusal else fired.tasks,
        destinations=fired.destinations,
        forward_original=fired.forward_original,
        refusal=refusal,
        own_result=own,
        asked=fired.tasks,
        trace=tuple(trace),
    )


def _condition(
    key: str, condition: Condition, header: Dataset, association: dict[str, str]
) -> ConditionTrace:
    found = _found(key, header, association)
    return ConditionTrace(key, in_words(condition), " \\ ".join(found), holds(key, condition, found))


def _found(key: str, header: Dataset, association: dict[str, str]) -> list[str]:
    if key in ASSOCIATION:
        return [association[key].strip()] if association[key].strip() else []
    return texts(key, header)


def holds(key: str, condition: Condition, found: Sequence[str]) -> bool:
    """Whether an attribute with these values (text without padding, none empty) fulfils a condition."""
    if condition.present is not None and bool(found) != condition.present:
        return False
    if condition.not_ is not None and holds(key, condition.not_, found):
        return False
    if condition.pattern is not None and not any(re.search(condition.pattern, value) for value in found):
        return False
    values = [value for value in (_comparable(key, text) for text in found) if value is not None]
    if condition.equals is not None and comparable(key, condition.equals) not in values:
        return False
    if condition.one_of is not None and not {comparable(key, v) for v in condition.one_of} & set(values):
        return False
    if condition.range is not None:
        low, high = (
            limit if value is None else float(comparable(key, value))
            for value, limit in zip(condition.range, (float("-inf"), float("inf")), strict=True)
        )
        return any(low <= value <= high for value in values if isinstance(value, float))
    return True


def _comparable(key: str, text: str) -> str | float | None:
    try:
        return comparable(key, text)
    except ValueError:
        return None


def in_words(condition: Condition) -> str:
    """The condition as a person would say it."""
    said = []
    if condition.equals is not None:
        said.append(f"{condition.equals}")
    if condition.one_of is not None:
        said.append("one of " + ", ".join(map(str, condition.one_of)))
    if condition.pattern is not None:
        said.append(f"matches /{condition.pattern}/")
    if condition.range is not None:
        low, high = condition.range
        if low is None or high is None:
            said.append(f"at most {high}" if low is None else f"at least {low}")
        else:
            said.append(f"from {low} to {high}")
    if condition.present is not None:
        said.append("present" if condition.present else "absent or empty")
    if condition.not_ is not None:
        said.append(f"not ({in_words(condition.not_)})")
    return " and ".join(said)
