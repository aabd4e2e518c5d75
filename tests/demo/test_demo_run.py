"""The demonstration from end to end, with the real node, and how it ends when something is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from pacs_node.demo import node as demo_node
from pacs_node.demo.destination import AE_TITLE, Destination
from pacs_node.demo.node import NodeFailedError, RunningNode
from pacs_node.demo.run import LOG, MARKER, PAGE, prepare
from pacs_node.demo.send import send_with_dcmtk, send_with_pynetdicom
from pacs_node.errors import ConfigurationError
from pacs_node.phantom.dicom import study

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "pacs_node", "demo"]


def _saved(folder: Path, **options: object) -> list[Path]:
    paths = []
    for number, ds in enumerate(study(2, rows=128, columns=128, **options), 1):
        paths.append(folder / f"{number}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("send", [send_with_dcmtk, send_with_pynetdicom])
def test_both_senders_deliver_and_name_what_was_not_taken(
    send: Callable[..., list[object]], tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    require_tool("dcmsend")
    files = _saved(tmp_path)
    stranger = tmp_path / "stranger.dcm"
    ds = dcmread(files[0])
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("2.25.2")  # a private one
    ds.save_as(stranger, enforce_file_format=True)
    with Destination(tmp_path / "received") as archive:
        failures = send([*files, stranger], archive.port, AE_TITLE)
        received = archive.received()
    assert [failure.path for failure in failures] == [stranger]
    assert failures[0].reason
    for path in files:
        sent, arrived = dcmread(path), dcmread(received[str(dcmread(path).SOPInstanceUID)])
        assert arrived == sent


@pytest.mark.slow
def test_file_names_at_the_archive_are_no_received_strings(tmp_path: Path) -> None:
    path = _saved(tmp_path)[0]
    with Destination(tmp_path / "received") as archive:
        assert send_with_pynetdicom([path], archive.port, AE_TITLE) == []
        (stored,) = archive.received().values()
    assert re.fullmatch(r"001-[0-9a-f]{16}\.dcm", stored.name)


def test_nobody_elses_files_are_touched(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "received").mkdir()
    (mine / "received" / "precious.dcm").touch()
    with pytest.raises(ConfigurationError, match="no demonstration made it"):
        prepare(mine)
    assert (mine / "received" / "precious.dcm").exists()
    (mine / MARKER).touch()
    prepare(mine)
    assert not (mine / "received").exists()


@pytest.mark.slow
def test_a_node_that_cannot_listen_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_node, "READY_SECONDS", 25.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(demo_node, "free_port", lambda: int(taken.getsockname()[1]))
        node = RunningNode(tmp_path, tmp_path / LOG, AE_TITLE, 104)
        with pytest.raises(NodeFailedError, match=r"(?s)node\.log.*cannot listen") as raised:
            node.start()
    assert "Correct what its log says" in str(raised.value) or "Free that port" in str(raised.value)


def _run(*arguments: str, timeout: float = 580) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
    )


def test_a_path_that_is_not_there_is_a_wrong_usage(tmp_path: Path) -> None:
    run = _run(str(tmp_path / "nothing"), "--out", str(tmp_path / "out"))
    assert run.returncode == 2
    assert "there is no such file or folder" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration_on_own_files(tmp_path: Path) -> None:
    """Two images, a file that is no DICOM, a repeated one: each analysed or refused by name; plain lines."""
    data = tmp_path / "data"
    data.mkdir()
    files = _saved(data, name="korean")
    (data / "3-again.dcm").write_bytes(files[0].read_bytes())
    (data / "notes.txt").write_text("not an image")
    run = _run(str(data), "--out", str(tmp_path / "out"))
    assert run.returncode == 1, run.stdout + run.stderr  # two inputs were not taken
    assert "\x1b" not in run.stdout
    assert "notes.txt: " in run.stdout
    assert "same SOP Instance UID as 1.dcm" in run.stdout
    for number in (1, 2):
        for step in ("receive", "route", "restoration", "anomaly", "report", "deliver"):
            assert re.search(rf"image {number}: {step} done \d+\.\d\d s", run.stdout), (number, step)
    received = [dcmread(path) for path in sorted((tmp_path / "out" / "received").glob("*.dcm"))]
    originals = {str(dcmread(path).SOPInstanceUID) for path in files}
    assert originals <= {str(ds.SOPInstanceUID) for ds in received}
    assert sum(ds.Modality == "SR" for ds in received) == 1
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "Imaging Measurement Report" in page
    assert "홍" not in page  # no patient's name on it
    assert "Hong" not in page
    assert str((tmp_path / "out" / PAGE).resolve()) in run.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupting_it_leaves_nothing_running(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, *map(str, _saved(tmp_path)), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        # A shell that runs the tests in the background has them ignore SIGINT, and so their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    port = 0
    for line in process.stdout:
        if found := re.search(r"on 127\.0\.0\.1:(\d+), archive", line):
            port = int(found[1])
        if "receive done" in line:
            break
    assert port
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert "the node is stopped" in said
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _mentions(tmp_path):
        time.sleep(0.2)
    assert _mentions(tmp_path) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert list(tmp_path.glob("pacs-node-demo-*")) == []  # its state is gone


def _mentions(folder: Path) -> list[str]:
    """Command lines of running processes that name ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if f"{folder}/pacs-node-demo-" in line:
            found.append(line)
    return found
