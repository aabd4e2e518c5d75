"""Fixtures that every room's tests share: real tools, real data, free ports."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
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


def unused_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, and that the system gives to nobody who does not ask for it.

    The system's own choice would come from the range in which it also finds ports for outgoing connections,
    such as another test's.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    below, above = range(10_240, first), range(last + 1, 65_536)
    while True:
        port = random.SystemRandom().choice(below or above)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def free_port() -> Callable[[], int]:
    """See ``unused_port``."""
    return unused_port
