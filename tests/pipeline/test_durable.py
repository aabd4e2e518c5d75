"""Whatever is killed, and wherever: everything received is delivered, with the same UIDs and bytes."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread

from pacs_node.pipeline.node import DELIVER
from tests.pipeline.conftest import chest
from tests.pipeline.harness import TASKS, Bench, StoreScp, settings

Scps = Callable[..., StoreScp]


@dataclass
class Prepared:
    """A node that has received one image and not begun to work on it, to be copied for each trial."""

    bench: Bench
    labels: list[str]
    delivered: dict[str, bytes]
    at_scp: dict[str, bytes]


def with_scp(folder: Path, port: int) -> dict[str, object]:
    """Settings with a folder and a DICOM node as destinations of everything."""
    base = settings(folder)
    destinations = {
        **base["destinations"],
        "PACS": {"type": "dicom", "ae_title": "STORE", "host": "127.0.0.1", "port": port, "timeout": 60},
    }
    rules = [{"name": "all", "tasks": TASKS, "destinations": ["FOLDER", "PACS"], "forward_original": True}]
    return {"destinations": destinations, "rules": rules}


@pytest.fixture
def prepared(tmp_path: Path, store_scp: Scps, free_port: Callable[[], int]) -> Prepared:
    """Runs the image through once without a kill, and notes every boundary and what arrives."""
    received = Bench(tmp_path / "received")
    received.receive(chest())
    port = free_port()
    scp = store_scp(port, tmp_path / "uninterrupted-pacs")
    bench = trial(received, tmp_path / "uninterrupted", port)
    labels = tmp_path / "labels"
    bench.work_off(labels=labels)
    at_scp = {uid: contents[0] for uid, contents in scp.received().items()}
    assert set(at_scp) == set(bench.delivered())
    assert len(at_scp) == 5  # the original, three results, the report
    return Prepared(received, labels.read_text().splitlines(), bench.delivered(), at_scp)


def trial(received: Bench, folder: Path, port: int) -> Bench:
    """A copy of the node that has received, with its own destinations."""
    shutil.copytree(received.folder / "state", folder / "state")
    return Bench(folder, with_scp(folder, port))


def kill_and_finish(prepared: Prepared, folder: Path, label: str, scp: Scps, port: int) -> str | None:
    """Kill the worker at a boundary, start it again, and compare; what is wrong, or None."""
    pacs = scp(port, folder / "pacs")
    bench = trial(prepared.bench, folder, port)
    if bench.work(kill_at=label, until_idle=True).wait() != -signal.SIGKILL:
        return f"{label}: was not met, so nothing was killed"
    bench.work_off()
    pacs.stop()
    arrived = pacs.received()
    differing = differences(
        prepared.delivered, {uid: {content} for uid, content in bench.delivered().items()}
    )
    differing += differences(prepared.at_scp, {uid: set(contents) for uid, contents in arrived.items()})
    if differing:
        return f"{label}: {differing}"
    jobs = bench.jobs().values()
    # Sending is at least once: a delivery that was begun twice, because it was interrupted, may arrive twice.
    begun: Counter[str] = Counter()
    for job in jobs:
        if job.kind == DELIVER and job.payload["destination"] == "PACS":
            sent = dcmread(bench.node.spool.root / f"{job.payload['file']}.dcm", stop_before_pixels=True)
            begun[str(sent.SOPInstanceUID)] += job.attempts
    if any(len(contents) > begun[uid] for uid, contents in arrived.items()):
        return f"{label}: an object was sent more often than its delivery was begun"
    if any(job.status != "done" for job in jobs):
        return f"{label}: a job is not done"
    shutil.rmtree(folder)
    return None


def differences(expected: dict[str, bytes], found: dict[str, set[bytes]]) -> list[str]:
    """What is missing, too much, or not the same, in words."""
    return [
        f"{uid} is missing"
        if uid not in found
        else f"{uid} is too much"
        if uid not in expected
        else f"{uid} differs"
        for uid in sorted({*expected, *found})
        if {expected.get(uid)} != found.get(uid)
    ]


def try_all(
    labels: Sequence[str], prepared: Prepared, folder: Path, scp: Scps, port: Callable[[], int]
) -> None:
    ports = [port() for _ in labels]

    def one(number: int) -> str | None:
        return kill_and_finish(prepared, folder / str(number), labels[number], scp, ports[number])

    # They wait more than they compute.
    with ThreadPoolExecutor(4) as pool:
        problems = [problem for problem in pool.map(one, range(len(labels))) if problem]
    assert problems == []


@pytest.mark.slow
def test_a_worker_killed_in_each_kind_of_job_finishes_after_a_restart(
    prepared: Prepared, tmp_path: Path, store_scp: Scps, free_port: Callable[[], int]
) -> None:
    endings = ("route: recorded", "restoration: done, not recorded", "report: done, not recorded")
    chosen = [label for label in prepared.labels if label.endswith(endings)]
    chosen += [label for label in prepared.labels if label.endswith("PACS/1 send: done, not recorded")][:1]
    assert len(chosen) == 4
    try_all(chosen, prepared, tmp_path / "trials", store_scp, free_port)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_worker_killed_at_every_step_boundary_finishes_after_a_restart(
    prepared: Prepared, tmp_path: Path, store_scp: Scps, free_port: Callable[[], int]
) -> None:
    steps = {label.rpartition(": ")[0] for label in prepared.labels}
    # object: route, 2 forwards, analyse; analyse: open, 3 x (task, 2 deliveries), count, report; …
    assert len(steps) == (1 + 2 + 1) + (1 + 3 * 3 + 2) + (1 + 2) + 10
    try_all(prepared.labels, prepared, tmp_path / "trials", store_scp, free_port)
