"""Files are whole and durable or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pacs_node.files import atomic_write, atomic_writer, make_folder


def test_atomic_write_replaces_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old" * 1000)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail_half_way() -> None:
        with atomic_writer(path) as file:
            file.write(b"half")
            file.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    atomic_write(tmp_path / "file", b"data")
    assert len(events) == 3
    assert events[0].endswith(".part")
    assert events[1:] == ["rename", str(tmp_path)]


def test_make_folder_makes_parents_and_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    make_folder(folder, 0o700)
    make_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
