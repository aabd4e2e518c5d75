"""From a file to a Config, or to every problem at once, each with its line and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from enum import EnumType
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pacs_node.config.attributes import nearest
from pacs_node.config.consistency import inconsistencies
from pacs_node.config.destinations import CommittingDestination
from pacs_node.config.model import Config
from pacs_node.config.section import Section
from pacs_node.config.source import Source, Where, read_text
from pacs_node.config.types import OWN
from pacs_node.errors import ConfigurationError, Problem

SYSTEM_FILE = Path("/etc/pacs-node/pacs-node.yaml")
LOCAL_FILE = Path("pacs-node.yaml")

_EXPECTED = {
    "string_type": ("text", "Put it in quotes"),
    "int_type": ("a whole number", "Write a whole number, without quotes and unit"),
    "int_from_float": ("a whole number", "Write a whole number, without quotes and unit"),
    "float_type": ("a number", "Write a number, without quotes and unit"),
    "bool_type": ("true or false", "Write true or false, without quotes"),
    "tuple_type": ("a list", "Write it as [a, b], or each on its own line after '- '"),
    "dict_type": ("a section of keys and values", "Write each as 'key: value' on its own line, indented"),
    "model_type": ("a section of keys and values", "Write each as 'key: value' on its own line, indented"),
    "model_attributes_type": (
        "a section of keys and values",
        "Write each as 'key: value' on its own line, indented",
    ),
}

_RANGE = ("a range has two values, from and to", "Write it as [40, 80]; null leaves a side open")


def locate(option: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The configuration file: the option, PACS_NODE_CONFIG, ./pacs-node.yaml, /etc/pacs-node/pacs-node.yaml.

    Raises ConfigurationError if there is none.
    """
    environ = os.environ if environ is None else environ
    if option is not None:
        return option
    if environ.get("PACS_NODE_CONFIG"):
        return Path(environ["PACS_NODE_CONFIG"])
    for path in (LOCAL_FILE, SYSTEM_FILE):
        if path.is_file():
            return path
    raise ConfigurationError(
        [
            Problem(
                str(LOCAL_FILE),
                None,
                None,
                "(whole file)",
                "",
                "there is no configuration: neither --config nor PACS_NODE_CONFIG is given, and "
                f"{LOCAL_FILE} and {SYSTEM_FILE} do not exist",
                "Write one from the example: pacs-node check --example > pacs-node.yaml",
            )
        ]
    )


def load(path: Path | str, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in a file. Raises ConfigurationError with all problems."""
    return load_with_source(path, environ)[0]


def load_with_source(path: Path | str, environ: Mapping[str, str] | None = None) -> tuple[Config, Source]:
    """As load; with the Source too, for checks that want to name lines."""
    path = Path(path)
    return parse(read_text(path), str(path), path.absolute().parent, environ)


def parse(
    text: str,
    file: str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Config, Source]:
    """The configuration in a text; ``file`` names it in problems, ``folder`` is where relative paths begin.

    ``known``: destinations that rules may name although the text does not describe them. Raises
    ConfigurationError with all problems, in the order of the lines.
    """
    source = Source(text, file, os.environ if environ is None else environ)
    _add_known(source.tree, known or {})
    problems = [
        source.problem(found.where, found.message, found.remedy, at_key=found.at_key)
        for found in inconsistencies(source.tree)
    ]
    config = None
    try:
        config = Config.model_validate(source.tree, context={"folder": folder})
    except ValidationError as error:
        problems += _translated(source, error)
    if problems or config is None:
        raise ConfigurationError(sorted(problems, key=lambda p: (p.line or 0, p.column or 0)))
    return config, source


def _add_known(tree: dict[str, Any], known: Mapping[str, Mapping[str, Any]]) -> None:
    """Describe the known destinations that rules name and the text does not describe."""
    destinations = tree.get("destinations") or {}
    rules = tree.get("rules") if isinstance(tree.get("rules"), list) else []
    for rule in rules or []:
        names = rule.get("destinations") if isinstance(rule, dict) else None
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and name in known and isinstance(destinations, dict):
                destinations.setdefault(name, dict(known[name]))
                tree["destinations"] = destinations


def _translated(source: Source, error: ValidationError) -> Iterator[Problem]:
    """Pydantic's errors in the administrator's words, one for each place."""
    by_place: dict[Where, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        if not details["loc"]:
            continue  # the parts disagree: told already, with lines, by inconsistencies()
        loc = tuple(part for part in details["loc"] if part != "[key]")
        # Without the names of unions' members, which pydantic adds and the file does not have
        where = _in_file(source, loc)
        by_place.setdefault(where, []).append(details)
    for where, found in by_place.items():
        own = [d for d in found if d["type"] == OWN]
        value = source.at(where)[0]
        if own or len(found) == 1:
            for details in own or found:
                yield from _problem(source, where, details)
        elif missing := [d for d in found if d["type"] == "missing"]:
            for details in missing:
                yield from _problem(source, where, details)
        else:
            expected = "a plain value: text, a number, true or false"
            yield source.problem(
                where, f"this is {_type_in_words(value)}, not {expected}", f"Give {expected}"
            )


def _in_file(source: Source, loc: tuple[int | str, ...]) -> Where:
    """The path in the file of pydantic's path: the names of unions' members left out."""
    where: Where = ()
    for part in loc:
        node, _ = source.at(where)
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            where = (*where, part)
    return where


def _problem(source: Source, where: Where, details: ErrorDetails) -> Iterator[Problem]:
    kind, context = details["type"], details.get("ctx", {})
    value = source.at(where)[0]
    field = _field_words(details["loc"])
    match kind:
        case _ if kind == OWN:
            yield source.problem(where, str(context["message"]), str(context["remedy"]))
        case "extra_forbidden":
            yield source.problem(where, "this key is not known here", _instead(details["loc"]), at_key=True)
        case "missing" if isinstance(details["loc"][-1], int):
            yield source.problem(where, *_RANGE)
        case "missing":
            name = str(details["loc"][-1])
            message, remedy = f"the key {name} is missing", f"Add '{name}: …'{field}"
            yield source.problem((*where, name), message, remedy)
        case "union_tag_not_found":
            message = (
                "the key type is missing"
                if isinstance(value, dict)
                else _not(value, "a section of keys and values")
            )
            remedy = "Add 'type: dicom', 'type: stow', 'type: folder' or 'type: orthanc'"
            yield source.problem((*where, "type") if isinstance(value, dict) else where, message, remedy)
        case "union_tag_invalid":
            yield source.problem(
                (*where, "type"), *_one_of(context["tag"], ("dicom", "stow", "folder", "orthanc"))
            )
        case "literal_error" | "enum":
            yield source.problem(where, *_one_of(value, _choices(details["loc"])))
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            yield source.problem(where, *_bounds(details["loc"], field))
        case "too_short" if isinstance(value, list) and value:
            pass  # its entries are wrong, which is told of each
        case "string_too_short" | "too_short":
            yield source.problem(
                where, "there is nothing in it", f"Give a value, or leave the key out{field}"
            )
        case "string_too_long" | "too_long":
            most = context.get("max_length")
            yield source.problem(where, f"it is longer than {most}", "Shorten it")
        case _ if where and where[-1] == "range":
            yield source.problem(where, *_RANGE)
        case _ if kind in _EXPECTED:
            expected, remedy = _EXPECTED[kind]
            if kind.startswith(("int", "float")) and isinstance(value, str) and not value.strip().isdecimal():
                remedy = f"Write {expected}{field}"
            yield source.problem(where, _not(value, expected), remedy)
        case _:
            yield source.problem(where, f"this value does not fit ({details['msg']})", f"Correct it{field}")


def _not(value: object, expected: str) -> str:
    if value is None:
        return f"no value is given; {expected} is expected"
    return f"this is {_type_in_words(value)}, not {expected}"


def _type_in_words(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a section of keys and values"
        case _:
            return "a list"


def _one_of(value: object, choices: tuple[str, ...]) -> tuple[str, str]:
    near = nearest(str(value), choices) if isinstance(value, str) else None
    among = f"One of {', '.join(choices)}"
    return "this value is not one of those known", f"Did you mean {near}? {among}" if near else among


def _bounds(loc: tuple[int | str, ...], field: str) -> tuple[str, str]:
    low = high = None
    above = False
    for bound in _metadata(loc):
        low = getattr(bound, "ge", getattr(bound, "gt", low))
        above = above or getattr(bound, "gt", None) is not None
        high = getattr(bound, "le", high)
    least = f"more than {low:g}" if above else f"at least {low:,}" if low is not None else ""
    most = (
        f"at most {high:,g}" if isinstance(high, float) else f"at most {high:,}" if high is not None else ""
    )
    wanted = " and ".join(part for part in (least, most) if part)
    return "the number is out of range", f"Give {wanted}{field}"


# What stands at a path, by the models' annotations


def _step(annotation: Any, part: int | str) -> Any:
    """The annotation of one part of what an annotation describes; None if unknown."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _step(get_args(annotation)[0], part)
    if origin in (Union, UnionType):
        members = [a for a in get_args(annotation) if a is not type(None)]
        for member in members:
            kind = member.model_fields.get("type") if _is_model(member) else None
            if kind is not None and part in get_args(kind.annotation):
                return member  # a discriminated union: its tag is a part of pydantic's path
        return _step(members[0], part)
    if origin is dict:
        return get_args(annotation)[1]
    if origin is tuple:
        return get_args(annotation)[0]
    if _is_model(annotation):
        for name, info in annotation.model_fields.items():
            if part in (name, info.alias):
                return (
                    Annotated[info.annotation, *info.metadata, info]
                    if info.metadata
                    else Annotated[info.annotation, info]
                )
    return None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _annotation(loc: tuple[int | str, ...]) -> Any:
    annotation: Any = Config
    for part in loc:
        annotation = _step(annotation, part)
        if annotation is None:
            return None
    return annotation


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _metadata(loc: tuple[int | str, ...]) -> Iterator[Any]:
    pending = [_annotation(loc)]
    while pending:
        annotation = pending.pop()
        if get_origin(annotation) in (Annotated, Union, UnionType):
            for part in get_args(annotation):
                yield part
                yield from getattr(part, "metadata", ())
                pending.append(part)


def _choices(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    annotation = _bare(_annotation(loc))
    if isinstance(annotation, EnumType):
        return tuple(str(member.value) for member in annotation)  # type: ignore[var-annotated]
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def _field_words(loc: tuple[int | str, ...]) -> str:
    """The field's description, to follow a remedy."""
    for part in _metadata(loc):
        if description := getattr(part, "description", None):
            return f" ({str(description).split('. ')[0].rstrip('.')})"
    return ""


def _instead(loc: tuple[int | str, ...]) -> str:
    """What to write instead of a key that is not known in its section."""
    name = str(loc[-1])
    section = _bare(_annotation(loc[:-1]))
    if get_origin(section) in (Union, UnionType):
        section = next((a for a in map(_bare, get_args(section)) if _is_model(a)), None)
    known = [f.alias or n for n, f in section.model_fields.items()] if _is_model(section) else []
    if "password" in name.lower() and "password_env" in known:
        return "Write password_env with the name of an environment variable that holds the password"
    if name in CommittingDestination.model_fields and loc[0] == "destinations":
        return (
            "Remove it: only a destination of type dicom, or orthanc with a modality, can be asked to commit"
        )
    if near := nearest(name, known):
        return f"Did you mean {near}?"
    homes = [
        key
        for key, info in Config.model_fields.items()
        if _is_model(info.annotation) and name in _fields(info.annotation)
    ]
    if homes:
        return f"It belongs under {homes[0]}"
    return f"Remove it; known here are {', '.join(known)}"


def _fields(section: type[Section] | Any) -> list[str]:
    return list(section.model_fields)
