"""Fixtures that every room's tests share: real tools, real data, free ports."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_ALL = os.environ.get("PACS_NODE_REQUIRE_ALL") == "1"
# Debian keeps daemons where a user's PATH does not look.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/lib/postgresql/15/bin"])


def absent(what: str) -> None:
    """Skip the test aloud for want of ``what``; fail where PACS_NODE_REQUIRE_ALL=1 asks for everything."""
    if REQUIRE_ALL:
        pytest.fail(f"{what}, and PACS_NODE_REQUIRE_ALL=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """``require_tool("dciodvfy")`` gives the path of a system tool, or skips the test."""

    def path(name: str) -> str:
        found = shutil.which(name, path=SEARCH_PATH)
        if found is None:
            absent(f"{name} is not installed (make system-tools)")
        return str(found)

    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real radiographs: PACS_NODE_DATA, default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PACS_NODE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dicom").is_dir():
        absent(f"no real data at {folder} (set PACS_NODE_DATA)")
    return folder


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a TCP port of 127.0.0.1 that was free a moment ago."""

    def port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return port
