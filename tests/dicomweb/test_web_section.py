"""The section web of the configuration: what is wrong with it is said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacs_node.config.check import check
from pacs_node.config.load import load, load_with_source
from pacs_node.errors import ConfigurationError
from pacs_node.pipeline.serve import wanted


def written(folder: Path, web: str) -> Path:
    path = folder / "pacs-node.yaml"
    path.write_text(
        f"node: {{state_dir: {folder}}}\nreceive: {{host: 127.0.0.1, min_free_disk_mb: 0}}\n{web}\n"
    )
    return path


@pytest.mark.parametrize(
    ("web", "key", "remedy"),
    [
        ("web: {username: me}", "web.username", "Add password_env"),
        ("web: {password_env: PASSWORD}", "web.password_env", "Add username"),
        ("web: {port: 11112}", "web.port", "another port"),
        ("web: {port: 0}", "web.port", "1"),
        ("web: {origins: [viewer.example]}", "web.origins.0", "https://viewer.local:3000"),
        ("web: {origins: ['https://viewer.example/path']}", "web.origins.0", "without a path"),
        ("web: {prot: 1}", "web.prot", "port"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, web: str, key: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(written(tmp_path, web))
    (problem,) = raised.value.problems
    assert problem.key == key
    assert remedy in problem.remedy
    assert problem.line == 3


def test_what_this_machine_says(tmp_path: Path) -> None:
    path = written(tmp_path, "web: {host: 0.0.0.0, port: 18999}")
    found = {problem.key: problem for problem in check(*load_with_source(path), environ={})}
    assert found["web.host"].severity == "warning"
    path = written(tmp_path, "web: {host: 0.0.0.0, port: 18999, token_env: DW_TOKEN}")
    found = {problem.key: problem for problem in check(*load_with_source(path), environ={})}
    assert "web.host" not in found
    assert "DW_TOKEN is not set" in found["web.token_env"].message
    found = {problem.key: problem for problem in check(*load_with_source(path), environ={"DW_TOKEN": "x"})}
    assert not {key for key in found if key.startswith("web")}


def test_only_what_is_configured_is_started(tmp_path: Path) -> None:
    assert wanted(load(written(tmp_path, "web: {}"))) == ("receiver", "worker", "web")
    assert wanted(load(written(tmp_path, "web:"))) == ("receiver", "worker")
    assert wanted(load(written(tmp_path, ""))) == ("receiver", "worker")
