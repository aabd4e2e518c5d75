"""``pacs-node echo`` and ``pacs-node send``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pacs_node.cli.main import app
from tests.deliver.conftest import StoreScp
from tests.dicom_objects import radiograph, write


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PACS_NODE_CONFIG", raising=False)

    def write_it(destinations: str) -> Path:
        path = tmp_path / "node.yaml"
        path.write_text(f"node: {{ae_title: MY_NODE, state_dir: state}}\ndestinations: {destinations}\n")
        return path

    return write_it


def test_echo_and_send_by_name(
    configuration: Callable[[str], Path], storescp: Callable[..., StoreScp], tmp_path: Path
) -> None:
    peer = storescp("-v", "+B")
    config = configuration(
        f"{{pacs: {{type: dicom, ae_title: STORESCP, host: 127.0.0.1, port: {peer.port}}}}}"
    )
    code, out, _ = run("echo", "pacs", "--config", config)
    assert (code, out) == (0, f"STORESCP at 127.0.0.1:{peer.port} answers C-ECHO\n")
    folder = tmp_path / "study"
    folder.mkdir()
    for number in range(3):
        write(folder, radiograph(), f"{number}.dcm")
    code, out, err = run("send", "pacs", folder, "--config", config)
    assert code == 0, err
    assert out.startswith("3 of 3 sent to pacs: 0.0 MB in ")
    assert len(peer.files()) == 3


def test_send_without_a_configuration(
    configuration: Callable[[str], Path], storescp: Callable[..., StoreScp], tmp_path: Path
) -> None:
    peer = storescp("+B")
    good, text = write(tmp_path, radiograph()), tmp_path / "notes.txt"
    text.write_text("no image")
    code, out, err = run("send", f"STORESCP@127.0.0.1:{peer.port}", good, text)
    assert code == 1
    assert out.startswith("1 of 2 sent")
    assert "notes.txt: not a DICOM file" in err
    assert len(peer.files()) == 1


def test_what_is_wrong_is_said_without_a_traceback(
    configuration: Callable[[str], Path], free_port: Callable[[], int], tmp_path: Path
) -> None:
    config = configuration("{archive: {type: folder, path: out}}")
    good = write(tmp_path, radiograph())
    code, _, err = run("echo", "archvie", "--config", config)
    assert code == 2
    assert "Did you mean archive?" in err
    code, _, err = run("echo", "A_TITLE_THAT_IS_TOO_LONG@localhost:104")
    assert code == 2
    assert "ae_title" in err
    assert run("send", "archive", tmp_path / "absent", "--config", config)[0] == 2
    code, _, err = run("send", f"X@127.0.0.1:{free_port()}", good)
    assert code == 1
    assert "no connection" in err
    assert run("send", "archive", good, "--config", config)[0] == 0
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1
