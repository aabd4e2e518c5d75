"""The node as its processes: what is killed comes back, and nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from pacs_node.pipeline.serve import backoff
from tests.dicom_objects import radiograph, write
from tests.pipeline.conftest import chest
from tests.pipeline.harness import ROOT, TASKS, WAIT, Listening, Process, StoreScp, settings, until


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def send(bench: Listening, sender: str, path: Path) -> bool:
    """Send one object as a modality does; whether it was told that the object is stored."""
    ended = subprocess.run(
        [
            sender,
            "-v",
            "--aetitle",
            "MODALITY",
            "--call",
            "PACS_NODE",
            "127.0.0.1",
            str(bench.port),
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    return ended.returncode == 0 and "Received Store Response (Success)" in ended.stdout + ended.stderr


def test_the_receiver_listens_before_it_has_loaded_the_engine_and_loads_no_model_code() -> None:
    heavy = ["dbos", "sqlalchemy", "cv2", "onnxruntime", "highdicom", "torch"]
    program = f"import sys, pacs_node.pipeline.receiver; print([m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_a_restart_is_prompt_at_first_and_then_later_and_later() -> None:
    assert [backoff(failures) for failures in (0, 1, 2, 3, 4, 20)] == [0, 0, 0.5, 1, 2, 30]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_receiver_killed_at_random_has_acknowledged_is_delivered(
    listening: Listening, start: Callable[..., Process], require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    sender = require_tool("storescu")
    listening.configure(
        rules=[{"name": "all", "destinations": ["FOLDER"], "forward_original": True}],
    )
    paths = [write(tmp_path, radiograph(rows=400, columns=400, seed=n), f"{n}.dcm") for n in range(24)]
    chance = random.Random(7)
    acknowledged: set[Path] = set()
    kills = 0
    receiver = start(listening, "pacs_node.pipeline.receiver")
    receiver.wait_for(" receiving ")
    for path in paths:
        # Some in the middle of a transfer, some between two.
        if chance.random() < 0.3:
            kills += 1
            doomed = subprocess.Popen(["sleep", str(chance.random() * 0.2)])
            sending = subprocess.Popen(
                [sender, "-v", "--call", "PACS_NODE", "127.0.0.1", str(listening.port), path],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            doomed.wait()
            receiver.end(signal.SIGKILL)
            said, _ = sending.communicate(timeout=WAIT)
            if "Received Store Response (Success)" in said:
                acknowledged.add(path)
            before = receiver.log.count(" receiving ")
            receiver = start(listening, "pacs_node.pipeline.receiver")
            receiver.wait_for(" receiving ", before + 1)
        elif send(listening, sender, path):
            acknowledged.add(path)
    assert kills >= 4
    assert len(acknowledged) >= len(paths) - kills
    # As a modality does, what was not acknowledged is sent again.
    again = [path for path in paths if path not in acknowledged]
    assert all(send(listening, sender, path) for path in again)
    assert receiver.end() == 0
    listening.work_off()
    sent = {str(dcmread(path).SOPInstanceUID): dcmread(path).PixelData for path in paths}
    delivered = listening.delivered()
    assert set(delivered) == set(sent)
    assert list((listening.node.spool.root / "incoming").glob("*/*/*")) == []
    assert not [job for job in listening.jobs().values() if job.status != "done"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_node_from_a_modality_to_a_pacs_that_is_down_and_with_processes_that_are_killed(
    listening: Listening,
    start: Callable[..., Process],
    store_scp: Callable[..., StoreScp],
    free_port: Callable[[], int],
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    sender, pacs_port = require_tool("storescu"), free_port()
    base = settings(listening.folder)
    listening.configure(
        destinations={
            **base["destinations"],
            "PACS": {
                "type": "dicom",
                "ae_title": "STORE",
                "host": "127.0.0.1",
                "port": pacs_port,
                "timeout": 5,
            },
        },
        rules=[{"name": "all", "tasks": TASKS, "destinations": ["FOLDER", "PACS"], "forward_original": True}],
    )
    node = start(listening, "pacs_node", "serve")
    node.wait_for(" receiving ")
    node.wait_for(" working ")
    assert send(listening, sender, write(tmp_path, chest(study=1), "1.dcm"))
    # The PACS is down: only what goes to it waits.
    until(lambda: len(listening.delivered()) == 5, "deliveries to the folder")
    until(lambda: "not delivered" in node.log, "an attempt on the PACS")

    # Both processes are killed, as by a lack of memory, and come back.
    for child in ("receiver", "worker"):
        pid = int(re.findall(rf"child={child} pid=(\d+)", node.log)[-1])
        os.kill(pid, signal.SIGKILL)
    node.wait_for(" receiving ", 2)
    node.wait_for(" working ", 2)
    assert send(listening, sender, write(tmp_path, chest(study=2), "2.dcm"))
    until(lambda: len(listening.delivered()) == 10, "deliveries after the restart")

    # The PACS is back: everything arrives, once.
    pacs = store_scp(pacs_port)
    until(lambda: len(pacs.received()) == 10, "deliveries to the PACS")
    assert set(pacs.received()) == set(listening.delivered())
    until(lambda: all(job.status == "done" for job in listening.jobs().values()), "the end of all jobs")
    assert {len(contents) for contents in pacs.received().values()} == {1}

    # SIGHUP: another AE title, taken over without a restart.
    listening.configure(
        node={**base["node"], "ae_title": "RENAMED"},
    )
    node.process.send_signal(signal.SIGHUP)
    node.wait_for("receiving by the new configuration")
    assert not send(listening, sender, tmp_path / "1.dcm")
    assert node.log.count("started child=receiver") == 2

    began = time.monotonic()
    pids = [int(pid) for pid in re.findall(r"child=\w+ pid=(\d+)", node.log)]
    assert node.end() == 0
    assert time.monotonic() - began < 20
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_no_process_outlives_a_killed_supervisor(listening: Listening, start: Callable[..., Process]) -> None:
    node = start(listening, "pacs_node", "serve")
    node.wait_for(" receiving ")
    node.wait_for(" working ")
    pids = [int(pid) for pid in re.findall(r"child=\w+ pid=(\d+)", node.log)]
    assert len(pids) == 2
    node.end(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids), "the end of the children")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"node": {"ae_title": "A_TITLE_THAT_IS_TOO_LONG"}}, "ae_title"),
        (
            {"models": {"anomaly": "missing"}, "rules": [{"name": "all", "tasks": ["anomaly"]}]},
            "models.anomaly",
        ),
    ],
)
def test_a_wrong_configuration_is_said_and_nothing_is_started(
    listening: Listening, start: Callable[..., Process], wrong: dict[str, Any], said: str
) -> None:
    listening.config_path.write_text(json.dumps(wrong))
    node = start(listening, "pacs_node", "serve")
    assert node.process.wait(WAIT) == 2
    assert said in node.log
    assert "Traceback" not in node.log
    assert "started" not in node.log
