"""Orthanc with the plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.orthanc.harness import PLUGINS, Orthanc
from tests.pipeline.conftest import listening, start, store_scp

__all__ = ["listening", "make_orthanc", "start", "store_scp"]


@pytest.fixture
def make_orthanc(
    tmp_path: Path, require_tool: Callable[[str], str], free_port: Callable[[], int]
) -> Iterator[Callable[..., Orthanc]]:
    """``make_orthanc(name, plugin=True)`` gives one that is not started yet."""
    tool = require_tool("Orthanc")
    for library in ("libOrthancPython.so", "libOrthancDicomWeb.so"):
        if not (PLUGINS / library).exists():
            absent(f"{library} is not installed (make system-tools)")
    made: list[Orthanc] = []

    def make(name: str = "orthanc", plugin: bool = True) -> Orthanc:
        orthanc = Orthanc(tool, tmp_path / name, free_port(), free_port(), plugin)
        made.append(orthanc)
        return orthanc

    yield make
    for orthanc in made:
        orthanc.ask_to_end()
    for orthanc in made:
        orthanc.close()
