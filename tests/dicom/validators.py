"""The validators of dicom3tools, their text read (their exit codes say nothing)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path


def errors(require_tool: Callable[[str], str], path: Path) -> set[str]:
    """What dciodvfy calls an error in ``path``."""
    return {line for line in _lines(require_tool("dciodvfy"), "-new", str(path)) if line.startswith("Error")}


def entity_errors(require_tool: Callable[[str], str], paths: Iterable[Path]) -> list[str]:
    """What dcentvfy calls an error: attributes that differ within one patient, study, series …"""
    lines = _lines(require_tool("dcentvfy"), *map(str, paths))
    return [line for line in lines if line.startswith("Error")]


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    text = done.stdout + done.stderr
    assert not re.search(r"command not found|usage:", text, re.IGNORECASE), text
    return text.splitlines()
