"""Writing files so that a crash or a power cut leaves either the old content or the new, never a part.

POSIX: a rename within one file system is atomic, but it is durable only once the folder that holds the name
has been fsynced, and the bytes are durable only once the file has been fsynced before the rename.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` (files created, renamed or removed there) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create ``folder`` and its parents, each one durable in the folder above it; one that exists is left as
    it is.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(mode, exist_ok=True)
        fsync_folder(path.parent)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends, whole and durable; if the block raises,
    nothing changes.

    The temporary file lies beside ``path`` as ``.<name>.<random>.part``, so that the rename stays on one file
    system. Raises OSError (ENOSPC on a full disk among others) with ``path`` untouched and the temporary file
    removed.
    """
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what is there: on return it is durable; after a crash it is old
    or new.

    Raises OSError with ``path`` untouched.
    """
    with atomic_writer(path) as file:
        file.write(data)
