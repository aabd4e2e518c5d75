"""What one part of a configuration demands of another: names that exist, values that fit their attribute.

Works on the plain tree of the file, and passes over parts of the wrong shape (they are the model's to
report), so that one run finds every problem.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pacs_node.config import attributes
from pacs_node.config.attributes import Kind


@dataclass(frozen=True)
class Inconsistency:
    """One demand that is not met. ``where`` is the path of keys and indices to the offending value."""

    where: tuple[str | int, ...]
    message: str
    remedy: str
    at_key: bool = False  # the key itself is wrong, not its value


def inconsistencies(tree: Mapping[str, Any]) -> Iterator[Inconsistency]:
    """All unmet demands between the parts of the file, in the order of the file."""
    yield from _receive(_mapping(tree.get("receive")))
    yield from _web(_mapping(tree.get("web")), _mapping(tree.get("receive")))
    destinations = _mapping(tree.get("destinations"))
    for name, destination in destinations.items():
        yield from _destination(name, _mapping(destination))
    yield from _rules(_sequence(tree.get("rules")), list(destinations))
    yield from _deliver(_mapping(_mapping(tree.get("deliver")).get("retry")))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _receive(receive: Mapping[str, Any]) -> Iterator[Inconsistency]:
    callers = _sequence(receive.get("callers"))
    if receive.get("check_calling_ae") is True and not callers:
        yield Inconsistency(
            ("receive", "check_calling_ae"),
            "callers are checked but receive.callers names none, so every caller would be refused",
            "List the callers' AE titles under receive.callers, or set check_calling_ae: false",
        )

    for index, caller in enumerate(map(_mapping, callers)):
        if caller.get("port") is not None and not caller.get("host"):
            yield Inconsistency(
                ("receive", "callers", index, "port"),
                "there is a port but no host",
                "Add host, or remove port",
            )


def _web(web: Mapping[str, Any], receive: Mapping[str, Any]) -> Iterator[Inconsistency]:
    if bool(web.get("username")) != bool(web.get("password_env")):
        key, other = ("username", "password_env") if web.get("username") else ("password_env", "username")
        yield Inconsistency(("web", key), f"there is {key} but no {other}", f"Add {other}, or remove {key}")
    if web and web.get("port", 8080) == receive.get("port", 11112):
        yield Inconsistency(
            ("web", "port") if "port" in web else ("receive", "port"),
            "the DICOM receiver and the DICOMweb service have the same port",
            "Give one of them another port",
        )


def _destination(name: str, destination: Mapping[str, Any]) -> Iterator[Inconsistency]:
    if destination.get("username") and not destination.get("password_env"):
        yield Inconsistency(
            ("destinations", name, "username"),
            "there is a user name but no password",
            "Add password_env with the name of the environment variable that holds it",
        )
    if destination.get("password_env") and not destination.get("username"):
        yield Inconsistency(
            ("destinations", name, "password_env"), "there is a password but no user name", "Add username"
        )
    if destination.get("modality") and destination.get("server"):
        yield Inconsistency(
            ("destinations", name, "server"),
            "one destination cannot be both a modality and a DICOMweb server",
            "Make two destinations of it, and name both in the rule",
        )
    if (
        destination.get("commitment") is True
        and destination.get("type") == "orthanc"
        and not destination.get("modality")
    ):
        yield Inconsistency(
            ("destinations", name, "commitment"),
            "an Orthanc that is stored into and its DICOMweb servers cannot be asked to commit",
            "Name one of its modalities, or remove commitment",
        )
    if destination.get("token_env") and destination.get("username"):
        yield Inconsistency(
            ("destinations", name, "token_env"),
            "a bearer token and a user name cannot both be sent",
            "Keep one: token_env, or username with password_env",
        )


def _deliver(retry: Mapping[str, Any]) -> Iterator[Inconsistency]:
    first, longest = retry.get("first_seconds", 5.0), retry.get("max_seconds", 600.0)
    if isinstance(first, int | float) and isinstance(longest, int | float) and first > longest:
        yield Inconsistency(
            ("deliver", "retry", "first_seconds" if "first_seconds" in retry else "max_seconds"),
            f"the first wait ({first:g} s) is longer than the longest ({longest:g} s)",
            "Set first_seconds to at most max_seconds",
        )


def _rules(rules: Sequence[Any], destinations: list[str]) -> Iterator[Inconsistency]:
    first_with: dict[str, int] = {}
    for index, rule in enumerate(map(_mapping, rules)):
        name = rule.get("name")
        if isinstance(name, str):
            if name in first_with:
                yield Inconsistency(
                    ("rules", index, "name"),
                    f"rules {first_with[name] + 1} and {index + 1} have the same name",
                    "Give each rule a name of its own",
                )
            first_with.setdefault(name, index)
        yield from _names(("rules", index, "destinations"), rule.get("destinations"), destinations)
        yield from _names(("rules", index, "tasks"), rule.get("tasks"), None)
        for key, condition in _mapping(rule.get("when")).items():
            where = ("rules", index, "when", key)
            if isinstance(key, str) and (wrong := attributes.unknown_key(key)):
                yield Inconsistency(where, *wrong, at_key=True)
            elif isinstance(key, str):
                yield from _condition(where, key, condition)


def _names(where: tuple[str | int, ...], names: Any, known: list[str] | None) -> Iterator[Inconsistency]:
    seen = set()
    for index, name in enumerate(_sequence(names)):
        if not isinstance(name, str):
            continue
        if known is not None and name not in known:
            near = attributes.nearest(name, known)
            remedy = (
                f"Did you mean {near}?"
                if near
                else (f"Known are {', '.join(map(str, known))}" if known else "Add it under destinations")
            )
            yield Inconsistency((*where, index), "there is no destination of this name", remedy)
        if name in seen:
            yield Inconsistency((*where, index), "this stands here twice", "Remove one")
        seen.add(name)


def _condition(where: tuple[str | int, ...], key: str, condition: Any) -> Iterator[Inconsistency]:
    if isinstance(condition, Mapping):
        if condition.get("equals") is not None:
            yield from _value((*where, "equals"), key, condition["equals"])
        for index, value in enumerate(_sequence(condition.get("one_of"))):
            yield from _value((*where, "one_of", index), key, value)
        if isinstance(condition.get("pattern"), str):
            yield from _pattern((*where, "pattern"), key, condition["pattern"])
        yield from _range((*where, "range"), key, _sequence(condition.get("range")))
        if "not" in condition:
            yield from _condition((*where, "not"), key, condition["not"])
    elif not isinstance(condition, str) and isinstance(condition, Sequence):
        for index, value in enumerate(condition):
            yield from _value((*where, index), key, value)
    elif condition is not None:
        yield from _value(where, key, condition)


def _value(where: tuple[str | int, ...], key: str, value: Any) -> Iterator[Inconsistency]:
    if value is None or not isinstance(value, str | int | float):
        return
    kind = attributes.kind_of(key)
    if kind in (Kind.TEXT, Kind.CODE):
        if not isinstance(value, str):
            yield Inconsistency(
                where,
                f"{key} is text, and YAML reads this as {_yaml_type(value)}",
                "Put it in quotes, exactly as the attribute has it",
            )
        elif not value.strip():
            yield Inconsistency(
                where, "the value is empty", "Use present: false for an absent or empty attribute"
            )
        return
    try:
        if isinstance(value, bool):
            raise ValueError  # a bool is an int to Python, never to DICOM
        attributes.comparable(key, value)
    except ValueError:
        assert kind is not None  # noqa: S101  unknown keys never come here
        yield Inconsistency(where, f"{key} takes {kind.value}", f"Give {kind.value}")


def _pattern(where: tuple[str | int, ...], key: str, pattern: str) -> Iterator[Inconsistency]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, FutureWarning, DeprecationWarning, OverflowError, RecursionError) as error:
        yield Inconsistency(
            where,
            f"the pattern is not a regular expression: {error}",
            "Put a backslash before ( ) [ ] * + ? . meant as text",
        )
        return
    if attributes.kind_of(key) not in (Kind.TEXT, Kind.CODE):
        yield Inconsistency(where, f"{key} is not text, so a pattern cannot match it", "Use equals or range")
    elif re.search(r"\([^()]*[+*][^()]*\)[+*{]", pattern):
        yield Inconsistency(
            where,
            "the pattern repeats a repetition, which can take a very long time on some values",
            "Write it without one repetition inside another",
        )


def _range(where: tuple[str | int, ...], key: str, bounds: Sequence[Any]) -> Iterator[Inconsistency]:
    if len(bounds) != 2:
        return  # the model reports it
    if attributes.kind_of(key) in (Kind.TEXT, Kind.CODE):
        yield Inconsistency(where, f"{key} is text and has no range", "Use one_of or pattern")
        return
    wrong = [found for index, value in enumerate(bounds) for found in _value((*where, index), key, value)]
    yield from wrong
    low, high = bounds
    if low is None and high is None:
        yield Inconsistency(where, "the range is open on both sides", "Give a bound, or use present: true")
    elif low is not None and high is not None and not wrong:
        lower, upper = attributes.comparable(key, low), attributes.comparable(key, high)
        if lower > upper:  # type: ignore[operator]  # both are numbers: texts were turned away above
            yield Inconsistency(
                where, "the range is reversed: its first value is the larger", f"Write [{high}, {low}]"
            )


def _yaml_type(value: object) -> str:
    return "true or false" if isinstance(value, bool) else "a number"
