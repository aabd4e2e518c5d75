"""Nodes, images and destinations for the tests of the pipeline."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from tests.dicom_objects import radiograph
from tests.pipeline.harness import Bench, Listening, Process, StoreScp

Chest = Callable[..., Dataset]


def chest(number: int = 1, study: int = 1, **changes: Any) -> Dataset:
    """A small image that is analysed; the same arguments give the same object."""
    dataset = radiograph(
        rows=160,
        columns=128,
        sop_instance_uid=f"1.2.826.0.1.3680043.9.1.{study}.{number}",
        study_instance_uid=f"1.2.826.0.1.3680043.9.1.{study}",
        seed=number,
    )
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.9.2.{study}"
    dataset.InstanceNumber = number
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A node with a folder as its destination."""
    return Bench(tmp_path / "node")


@pytest.fixture
def store_scp(
    require_tool: Callable[[str], str], tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[Callable[..., StoreScp]]:
    """``store_scp(port, folder)`` starts DCMTK's storescp."""
    program = require_tool("storescp")
    running: list[StoreScp] = []

    def start(port: int | None = None, folder: Path | None = None) -> StoreScp:
        scp = StoreScp(program, folder or tmp_path / "pacs", port or free_port())
        running.append(scp)
        return scp

    yield start
    for scp in running:
        scp.stop()


@pytest.fixture
def listening(tmp_path: Path, free_port: Callable[[], int]) -> Listening:
    """A node that will receive on a free port."""
    return Listening(tmp_path / "node", free_port())


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """``start(bench, module, …)`` starts a process that is ended with the test."""
    started: list[Process] = []

    def run(bench: Bench, *arguments: str) -> Process:
        started.append(Process(bench, *arguments))
        return started[-1]

    yield run
    for process in started:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)
