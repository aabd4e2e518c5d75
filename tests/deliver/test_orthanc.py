"""Delivery to an Orthanc over its REST API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pacs_node.config.destinations import OrthancDestination as Settings
from pacs_node.deliver.orthanc import OrthancDestination
from pacs_node.errors import DeliveryError
from tests.deliver.conftest import PASSWORD, USER, Orthanc
from tests.dicom_objects import radiograph, write

VARIABLE = "PACS_NODE_TEST_PASSWORD"


def destination(port: int, **more: str) -> OrthancDestination:
    url = f"http://127.0.0.1:{port}"
    settings = Settings(type="orthanc", url=url, username=USER, password_env=VARIABLE, timeout=60.0, **more)
    return OrthancDestination("O", settings)


def test_it_takes_a_file_once(orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)
    dataset = radiograph()
    path = write(tmp_path, dataset)
    assert destination(orthanc.http).echo().startswith("Orthanc ")
    before = orthanc.get("/changes?last")["Last"]
    destination(orthanc.http).send([path])
    assert orthanc.file_of(str(dataset.SOPInstanceUID)) == path.read_bytes()
    after = orthanc.get("/changes?last")["Last"]
    assert after > before
    destination(orthanc.http).send([path])
    assert orthanc.get("/changes?last")["Last"] == after


def test_what_it_does_not_take_is_said(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)
    path = write(tmp_path, radiograph())
    with pytest.raises(DeliveryError, match="no connection") as raised:
        destination(free_port()).send([path])
    assert raised.value.transient
    with pytest.raises(DeliveryError, match="No modality with symbolic name: NONE") as raised:
        destination(orthanc.http, modality="NONE").send([path])
    assert raised.value.transient
    with pytest.raises(DeliveryError, match="no such DicomWeb server: NONE"):
        destination(orthanc.http, server="NONE").echo()
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(DeliveryError, match="HTTP 401"):
        destination(orthanc.http).echo()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(DeliveryError, match=f"{VARIABLE} is not set") as raised:
        destination(orthanc.http).send([path])
    assert not raised.value.transient
