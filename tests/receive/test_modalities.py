"""DCMTK's senders as modalities, real radiographs, and the receiver as a process of its own kind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from pacs_node.receive.contexts import TRANSFER_SYNTAXES
from tests.dicom_objects import radiograph, write, write_in
from tests.receive.conftest import Running, Start

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


def dcmsend(require_tool: Callable[[str], str], running: Running, *paths: Path) -> str:
    """Send files as they are; DCMTK's report."""
    done = subprocess.run(
        [
            require_tool("dcmsend"), "-v", "--decompress-never", "-aet", "DCMTK", "-aec", "PACS_NODE",
            "127.0.0.1", str(running.port), *map(str, paths),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_echoscu(running: Running, require_tool: Callable[[str], str]) -> None:
    command = [require_tool("echoscu"), "-aec", "PACS_NODE", "127.0.0.1", str(running.port)]
    subprocess.run(command, check=True, timeout=120)
    wrong = subprocess.run([*command[:2], "WRONG", *command[3:]], capture_output=True, text=True, timeout=120)
    assert wrong.returncode != 0
    assert "Called AE Title Not Recognized" in wrong.stdout + wrong.stderr


def test_dcmsend_in_every_transfer_syntax(
    running: Running, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    files = [write_in(tmp_path, syntax, require_tool) for syntax in TRANSFER_SYNTAXES]
    report = dcmsend(require_tool, running, *files)
    assert f"with status SUCCESS  : {len(files)}" in report
    kept = [pydicom.dcmread(stored.path) for stored in running.stored]
    # DCMTK takes the two plain little endian syntaxes for one another; every other one comes as it is.
    assert {dataset.file_meta.TransferSyntaxUID for dataset in kept} == set(TRANSFER_SYNTAXES) - {IMPLICIT}
    sent = {(dataset := pydicom.dcmread(path)).SOPInstanceUID: dataset for path in files}
    for dataset in kept:
        assert dataset.PixelData == sent[dataset.SOPInstanceUID].PixelData


@pytest.mark.parametrize(("option", "syntax"), [("-x=", EXPLICIT), ("-xi", IMPLICIT)])
def test_storescu_with_its_default_proposals(
    running: Running, tmp_path: Path, require_tool: Callable[[str], str], option: str, syntax: str
) -> None:
    """storescu offers all storage SOP classes that it knows, most of them refused, and a PDU of 16 KB."""
    path = write(tmp_path, radiograph(rows=500, columns=500))
    place = ["-aec", "PACS_NODE", "127.0.0.1", str(running.port)]
    subprocess.run([require_tool("storescu"), option, *place, str(path)], check=True, timeout=120)
    (stored,) = running.stored
    kept = pydicom.dcmread(stored.path)
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept.PixelData == pydicom.dcmread(path).PixelData


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_radiographs_arrive_with_their_pixel_data(
    running: Running, data_dir: Path, require_tool: Callable[[str], str]
) -> None:
    files = sorted((data_dir / "dicom").glob("*.dcm"))
    report = dcmsend(require_tool, running, *files)
    assert f"with status SUCCESS  : {len(files)}" in report
    sent = sorted((ds.SOPInstanceUID, ds.PixelData) for ds in map(pydicom.dcmread, files))
    kept = sorted(
        (ds.SOPInstanceUID, ds.PixelData) for ds in (pydicom.dcmread(it.path) for it in running.stored)
    )
    assert [uid for uid, _ in kept] == [uid for uid, _ in sent]
    assert [pixels for _, pixels in kept] == [pixels for _, pixels in sent]


@pytest.mark.slow
def test_thirty_dcmtk_processes_at_once(
    start: Start, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    running = start()
    files = [write(tmp_path, radiograph(rows=512, columns=512), f"{n}.dcm") for n in range(30)]
    tool = require_tool("storescu")
    senders = [
        subprocess.Popen([tool, "-aec", "PACS_NODE", "127.0.0.1", str(running.port), str(path)])
        for path in files
    ]
    assert [sender.wait(timeout=240) for sender in senders] == [0] * 30
    assert len({stored.key for stored in running.stored}) == 30


@pytest.mark.slow
def test_a_modality_that_is_killed_in_the_middle_leaves_nothing(
    running: Running, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    path = write(tmp_path, radiograph(rows=5000, columns=5000))  # 50 MB: time enough to be killed
    place = ["-aec", "PACS_NODE", "127.0.0.1", str(running.port)]
    with subprocess.Popen([require_tool("storescu"), *place, str(path)]) as sender:
        deadline = time.monotonic() + 120
        while not running.incoming() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert running.incoming(), "the object should be arriving"
        sender.kill()
    while running.incoming() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running.incoming()
    assert running.stored == []


def test_the_receiver_imports_no_models_and_is_quick() -> None:
    """What decides the time to the first association: the imports, in processor time."""
    program = (
        "import sys, time; began = time.process_time()\n"
        "import pacs_node.receive.scp\n"
        "heavy = {'cv2', 'onnxruntime', 'highdicom', 'torch', 'dbos', 'sqlalchemy', 'pydantic'}\n"
        "print(time.process_time() - began, *(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    answers = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)
    ]
    assert min(float(seconds) for seconds, *_ in answers) < 1.0
    assert [heavy for _, *heavy in answers] == [[]] * 3
