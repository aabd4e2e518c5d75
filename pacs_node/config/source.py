"""A YAML file as text, plain data, and the line of every key: what problems are told against."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pacs_node.errors import ConfigurationError, Problem

MAX_BYTES = 256 * 1024  # a configuration is a few kilobytes
MAX_NODES = 20_000  # bounds what YAML's aliases can blow up

# Where a value of the file may come from the environment instead (and wins over the file)
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "PACS_NODE_STATE_DIR": ("node", "state_dir"),
    "PACS_NODE_HOST": ("receive", "host"),
    "PACS_NODE_PORT": ("receive", "port"),
    "PACS_NODE_MODELS": ("models", "folders"),
    "PACS_NODE_DATABASE": ("engine", "database"),
}
_NUMBERS = {"PACS_NODE_PORT"}
_LISTS = {"PACS_NODE_MODELS"}

Where = tuple[str | int, ...]


class Source:
    """The file's content: ``tree`` (plain data, environment applied) and where each part of it stands."""

    def __init__(self, text: str, file: str, environ: Mapping[str, str]) -> None:
        self.file = file
        self._marks = _parse(text, file)
        self._nodes = 0
        self.tree: dict[str, Any] = self._plain(self._marks)
        self._from_environment: dict[Where, str] = {}
        self._apply(environ)

    def problem(
        self, where: Where, message: str, remedy: str, severity: str = "error", *, at_key: bool = False
    ) -> Problem:
        """A Problem at this place of the file, or at the environment variable that the value came from."""
        key, value = ".".join(map(str, where)) or "(whole file)", "" if at_key else self._shown(where)
        for place, variable in self._from_environment.items():
            if where[: len(place)] == place:
                named = f"environment variable {variable}"
                return Problem(named, None, None, key, value, message, remedy, severity)
        line, column = self.place(where, at_key=at_key)
        return Problem(self.file, line, column, key, value, message, remedy, severity)

    def place(self, where: Where, *, at_key: bool = False) -> tuple[int, int]:
        """Line and column (from 1) of the value at this path, or of the nearest part around it."""
        node: Any = self._marks
        line, column = 0, 0
        for depth, part in enumerate(where):
            try:
                if isinstance(node, CommentedSeq) and isinstance(part, int):
                    line, column = node.lc.item(part)
                elif isinstance(node, CommentedMap):
                    line, column = node.lc.key(part)
                    last = depth == len(where) - 1
                    plain = not isinstance(node[part], CommentedMap | CommentedSeq | None)
                    if last and plain and not at_key:
                        line, column = node.lc.value(part)
                else:
                    break
                node = node[part]
            except (KeyError, IndexError, TypeError, AttributeError):
                break  # merged in or from the environment: the part around it is the place
        return line + 1, column + 1

    def at(self, where: Where) -> tuple[Any, Where]:
        """The value at the longest part of the path that exists, and that part."""
        node: Any = self.tree
        for depth, part in enumerate(where):
            there = (
                part in node
                if isinstance(node, dict)
                else isinstance(node, list) and isinstance(part, int) and part < len(node)
            )
            if not there:
                return node, where[:depth]
            node = node[part]
        return node, where

    def _shown(self, where: Where) -> str:
        """The value, short, on one line; never a secret."""
        value, found = self.at(where)
        if found != where or isinstance(value, dict | list) or value is None:
            return ""
        last = str(where[-1]).lower() if where else ""
        if any(word in last for word in ("password", "token", "secret", "database")) or "@" in str(value):
            return "not shown"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
        return shown if len(shown) <= 120 else f"{shown[:117]}..."

    def _plain(self, node: Any) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            problem = Problem(
                self.file,
                1,
                1,
                "(whole file)",
                "",
                "its aliases unfold to too much",
                "Write it without aliases (*name)",
            )
            raise ConfigurationError([problem])
        if isinstance(node, Mapping):
            return {k if isinstance(k, str) else str(k): self._plain(v) for k, v in node.items()}
        if isinstance(node, Sequence) and not isinstance(node, str | bytes):
            return [self._plain(v) for v in node]
        if isinstance(node, datetime):
            return str(node)
        if isinstance(node, date):
            return node.isoformat()
        for plain in (bool, int, float, str):  # ruamel's own scalar types carry their formatting
            if isinstance(node, plain):
                return plain(node)
        return None if node is None else str(node)

    def _apply(self, environ: Mapping[str, str]) -> None:
        for variable, where in ENVIRONMENT.items():
            text = environ.get(variable, "")
            if not text:
                continue
            value: Any = text
            if variable in _LISTS:
                value = [part for part in text.split(os.pathsep) if part]
            elif variable in _NUMBERS and text.strip().isdecimal():
                value = int(text)
            section = self.tree.setdefault(where[0], {})
            if isinstance(section, dict):
                section[where[1]] = value
                self._from_environment[where] = variable


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigurationError if it cannot be read, is too large or is not UTF-8."""

    def failed(message: str, remedy: str, line: int | None = None) -> ConfigurationError:
        return ConfigurationError(
            [Problem(str(path), line, None if line is None else 1, "(whole file)", "", message, remedy)]
        )

    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise failed(
            "there is no such file", "Check the path given to --config or PACS_NODE_CONFIG"
        ) from None
    except OSError as error:
        remedy = "Make it a file that the user of the node may read"
        raise failed(f"it cannot be read: {error.strerror}", remedy) from None
    if len(content) > MAX_BYTES:
        raise failed(
            f"it is larger than {MAX_BYTES // 1024} KiB", "Check that this is the configuration file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise failed("it is not UTF-8 text", "Save it as UTF-8", line) from None


def _parse(text: str, file: str) -> CommentedMap:
    """YAML to ruamel's tree, which knows the line of each key."""

    def failed(line: int, column: int, key: str, message: str, remedy: str) -> ConfigurationError:
        return ConfigurationError([Problem(file, line, column, key, "", message, remedy)])

    tabs = [
        Problem(
            file,
            number,
            line.index("\t") + 1,
            "(YAML)",
            "",
            "a tab stands in the indentation, which YAML forbids",
            "Indent with spaces",
        )
        for number, line in enumerate(text.splitlines(), 1)
        if "\t" in line[: len(line) - len(line.lstrip())]
    ]
    if tabs:
        raise ConfigurationError(tabs)
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "(YAML)"
        first = error.context_mark.line + 1 if error.context_mark else None
        message = "this key stands twice in the same section" + (
            f", which begins in line {first}" if first else ""
        )
        raise failed(mark.line + 1, mark.column + 1, key, message, "Remove one of the two") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        about = ": ".join(str(part) for part in (error.context, error.problem) if part)
        remedy = "Check this line and the one above: indentation, colon and space after each key, quotes"
        raise failed(line, column, "(YAML)", f"this is not YAML: {about}", remedy) from None
    except (YAMLError, ValueError) as error:
        summary = str(error).splitlines()[0]
        raise failed(1, 1, "(YAML)", f"this is not YAML: {summary}", "Save it as plain UTF-8 text") from None
    except RecursionError:
        raise failed(1, 1, "(YAML)", "it is nested too deeply", "Compare it with the example") from None
    if not isinstance(tree, CommentedMap):
        message = "the file is empty" if tree is None else "the file is not a list of keys and values"
        raise failed(1, 1, "(whole file)", message, "Begin with a section such as node:, as in the example")
    return tree
