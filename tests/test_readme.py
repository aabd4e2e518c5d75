"""The README's architecture picture matches the folders, and the commands it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def folders(parent: Path) -> set[str]:
    return {p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))}


def test_picture_shows_each_room_of_the_runtime() -> None:
    picture = README.split("subgraph pacs_node")[1].split("\n  end\n")[0]
    rooms = set(re.findall(r"\b([a-z_]+)\[+[(]?\1/", picture))
    assert rooms == folders(ROOT / "pacs_node")


def test_table_names_each_top_level_folder() -> None:
    table = set(re.findall(r"^\| `([a-z_]+)/` \|", README, flags=re.MULTILINE))
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    there = {f for f in folders(ROOT) if any((ROOT / f).rglob("*.*"))} - ignored
    assert table == there


def test_picture_of_the_demo_exists() -> None:
    assert (ROOT / ".github" / "demo-page.png").stat().st_size > 10_000


def test_commands_named_exist() -> None:
    from pacs_node.cli.main import app

    command = get_command(app)
    named = set()
    for row in re.findall(r"^\| `pacs-node (.+?) \|", README, flags=re.MULTILINE):
        words = re.findall(r"[a-z]+(?= |`|\b)", row.split("` |")[0])
        named.add(words[0])
    assert named <= set(command.commands)  # type: ignore[attr-defined]
    assert {"check", "explain", "analyze", "jobs", "models", "echo", "demo", "serve"} <= named


@pytest.mark.parametrize("target", ["demo", "test", "test-fast", "test-all", "bench"])
def test_make_targets_named_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
