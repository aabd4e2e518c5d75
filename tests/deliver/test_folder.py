"""A folder as destination."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydicom.uid import generate_uid

from pacs_node.config.model import FolderDestination as Settings
from pacs_node.deliver import Destination, open_destination
from pacs_node.errors import DeliveryError
from tests.dicom_objects import radiograph, write


def to(path: Path) -> Destination:
    return open_destination("ARCHIVE", Settings(type="folder", path=path), "PACS_NODE")


def test_files_lie_under_their_uids_and_the_same_file_changes_nothing(tmp_path: Path) -> None:
    dataset = radiograph()
    path = write(tmp_path, dataset)
    out = tmp_path / "out"
    target = out / dataset.StudyInstanceUID / f"{dataset.SOPInstanceUID}.dcm"
    to(out).send([path])
    assert target.read_bytes() == path.read_bytes()
    before = target.stat()
    to(out).send([path])
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_content_is_kept_beside_the_first(tmp_path: Path) -> None:
    uid, study = generate_uid(), generate_uid()
    files = [
        write(tmp_path, radiograph(sop_instance_uid=uid, study_instance_uid=study, seed=n), f"{n}.dcm")
        for n in range(2)
    ]
    out = tmp_path / "out"
    for _ in range(2):
        to(out).send(files)
    kept = {path.read_bytes() for path in (out / study).iterdir()}
    assert kept == {path.read_bytes() for path in files}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_is_none_becomes_a_hash(tmp_path: Path) -> None:
    dataset = radiograph(study_instance_uid="1.2.3.4.5.66")
    path = write(tmp_path, dataset)
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4.5.66", b"../../../../"))
    out = tmp_path / "out"
    to(out).send([path])
    (written,) = out.rglob("*.dcm")
    assert written.resolve().is_relative_to(out)
    assert len(written.parent.name) == 32
    assert written.read_bytes() == path.read_bytes()


def test_a_folder_whose_parent_is_absent_is_a_transient_failure_and_is_not_made(tmp_path: Path) -> None:
    destination = to(tmp_path / "share" / "out")
    for attempt in (destination.echo, lambda: destination.send([write(tmp_path, radiograph())])):
        with pytest.raises(DeliveryError, match="No such file") as failed:
            attempt()
        assert failed.value.transient
    assert not (tmp_path / "share").exists()


def test_echo_says_where_and_how_much_is_free(tmp_path: Path) -> None:
    assert "MB free" in to(tmp_path).echo()


def test_the_first_deliveries_may_come_at_the_same_moment(tmp_path: Path) -> None:
    paths = [write(tmp_path, radiograph(), f"{n}.dcm") for n in range(4)]
    for number in range(50):
        root, together = tmp_path / f"out{number}", Barrier(len(paths))

        def send(path: Path, destination: Destination = to(root), start: Barrier = together) -> None:  # noqa: B008
            start.wait()
            destination.send([path])

        with ThreadPoolExecutor(len(paths)) as pool:
            list(pool.map(send, paths))
        assert len(list(root.rglob("*.dcm"))) == len(paths)
