"""C-STORE to DCMTK's storescp and to Orthanc, and to nodes that refuse, warn, hang and die."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from pacs_node.config.model import DicomDestination as Settings
from pacs_node.deliver import Destination, open_destination
from pacs_node.deliver.dimse import DicomDestination
from pacs_node.errors import DeliveryError
from tests.deliver.conftest import Orthanc, StoreScp
from tests.dicom_objects import EIGHT_BIT, ENCODERS, LOSSY, data_set_bytes, radiograph, write, write_in

ALL_SYNTAXES = list(ENCODERS)


def to(port: int, ae_title: str = "STORESCP", **more: Any) -> Destination:
    settings = Settings.model_validate(
        {"type": "dicom", "ae_title": ae_title, "host": "127.0.0.1", "port": port, "timeout": 5.0, **more}
    )
    return open_destination("PACS", settings, "PACS_NODE")


@contextmanager
def scp(
    answer: Callable[[Any], Any], *, called: bool = False, calling: list[str] | None = None
) -> Iterator[int]:
    """A Storage SCP in this process that answers as a test wants."""
    ae = AE(ae_title="STORESCP")
    ae.add_supported_context(ComputedRadiographyImageStorage, ALL_SYNTAXES)
    ae.add_supported_context("1.2.840.10008.1.1")
    ae.require_called_aet = called
    ae.require_calling_aet = calling or []
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_every_transfer_syntax_goes_out_unchanged(
    tmp_path: Path, storescp: Callable[..., StoreScp], require_tool: Callable[[str], str]
) -> None:
    """+xa: accept everything that it knows; +B: write what is read, bit by bit."""
    peer = storescp("+xa", "+B")
    known = [syntax for syntax in ALL_SYNTAXES if not syntax.endswith(".4.57")]
    files = [write_in(tmp_path, syntax, require_tool) for syntax in known]
    to(peer.port).send(files)
    received = {pydicom.dcmread(path).SOPInstanceUID: path for path in peer.files()}
    for sent in files:
        kept = received[pydicom.dcmread(sent).SOPInstanceUID]
        assert pydicom.dcmread(kept).file_meta.TransferSyntaxUID == sent.stem
        data_set = data_set_bytes(sent)
        # DCMTK writes deflated files of odd length, which may not go over the network as such.
        assert data_set_bytes(kept) == data_set + b"\0" * (len(data_set) % 2)


def dcmtk_pixels(path: Path, require_tool: Callable[[str], str]) -> np.ndarray:
    """The pixels as DCMTK decodes them; JPEG 2000, which it does not, as pydicom does."""
    tool = "dcmdjpls" if path.stem[-2:] in ("80", "81") else "dcmdjpeg"
    plain = path.with_suffix(".plain")
    if path.stem[-2:] in ("57", "70", "80", "81", "50", "51"):
        subprocess.run([require_tool(tool), path, plain], check=True)
        return pydicom.dcmread(plain).pixel_array
    return pydicom.dcmread(path).pixel_array


@pytest.mark.parametrize("option", ["+xe", "+xi"])
def test_a_destination_without_compression_gets_the_same_pixels(
    tmp_path: Path,
    storescp: Callable[..., StoreScp],
    require_tool: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
    option: str,
) -> None:
    caplog.set_level(logging.INFO)
    peer = storescp(option)  # +xi takes implicit only, +xe the uncompressed syntaxes
    original = radiograph()
    files = [write_in(tmp_path, syntax, require_tool) for syntax in ALL_SYNTAXES]
    to(peer.port).send(files)
    received = {(ds := pydicom.dcmread(path)).SOPInstanceUID: ds for path in peer.files()}
    assert len(received) == len(files)
    for path in files:
        sent = pydicom.dcmread(path)
        kept = received[sent.SOPInstanceUID]
        assert not kept.file_meta.TransferSyntaxUID.is_compressed
        implicit = option == "+xi" or path.stem == ImplicitVRLittleEndian
        assert (kept.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian) == implicit
        assert np.array_equal(kept.pixel_array, dcmtk_pixels(path, require_tool))
        if path.stem not in LOSSY | EIGHT_BIT:
            assert np.array_equal(kept.pixel_array, original.pixel_array)
    assert caplog.text.count("sent decoded") >= 7


def test_what_cannot_be_decoded_for_such_a_destination_is_permanent(
    tmp_path: Path, storescp: Callable[..., StoreScp], require_tool: Callable[[str], str]
) -> None:
    peer = storescp("+xe")
    path = write_in(tmp_path, "1.2.840.10008.1.2.4.80", require_tool)
    broken = pydicom.dcmread(path)
    broken.PixelData = broken.PixelData[:40] + b"\0" * (len(broken.PixelData) - 40)
    broken.save_as(path)
    good = write(tmp_path, radiograph(), "good.dcm")
    with pytest.raises(DeliveryError, match="does not decode") as failed:
        to(peer.port).send([path, good])
    assert not failed.value.transient
    assert len(peer.files()) == 1  # the other one went


def test_orthanc_takes_them_and_keeps_the_bytes(
    orthanc: Orthanc, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    files = [write_in(tmp_path, syntax, require_tool) for syntax in ALL_SYNTAXES]
    destination = to(orthanc.dicom, "ORTHANC")
    reported: list[tuple[Path, str | None]] = []
    assert "ORTHANC" in destination.echo()
    destination.send(files, lambda path, failure: reported.append((path, failure)))
    assert reported == [(path, None) for path in files]
    for path in files:
        sent = pydicom.dcmread(path)
        kept = orthanc.file_of(sent.SOPInstanceUID)
        assert kept is not None
        copy = tmp_path / "copy.dcm"
        copy.write_bytes(kept)
        received = pydicom.dcmread(copy)
        assert received.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
        assert received.PixelData == sent.PixelData


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_radiographs_reach_orthanc(orthanc: Orthanc, data_dir: Path) -> None:
    files = sorted((data_dir / "dicom").glob("*.dcm"))
    to(orthanc.dicom, "ORTHANC").send(files)
    for path in files:
        assert orthanc.file_of(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) is not None


def test_a_sop_class_that_is_refused_is_permanent_and_names_it(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    other = write(tmp_path, radiograph(sop_class="1.2.840.10008.5.1.4.1.1.1.1"), "dx.dcm")
    good = write(tmp_path, radiograph(), "cr.dcm")
    with (
        scp(lambda event: 0x0000) as port,
        pytest.raises(DeliveryError, match="Digital X-Ray Image") as failed,
    ):
        to(port).send([other, good])
    assert not failed.value.transient
    assert "Allow this SOP class there" in str(failed.value)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, None),
        (0xB000, None),
        (0xB006, None),
        (0xB007, None),
        (0x0107, None),
        (0x0111, None),
        (0xA700, True),
        (0xA702, True),
        (0x0110, True),
        (0x0213, True),
        (0xA900, False),
        (0xC123, False),
        (0x0122, False),
        (0x0124, False),
        (0x0117, False),
        (0x9999, True),
    ],
)
def test_statuses(
    tmp_path: Path, status: int, outcome: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, radiograph())

    def answer(event: Any) -> Dataset:
        response = Dataset()
        response.Status = status
        response.ErrorComment = "Secret^Name is unknown"
        return response

    told: list[str | None] = []
    with scp(answer) as port:
        destination = to(port)
        if outcome is None:
            destination.send([path], lambda _, failure: told.append(failure))
            assert told == [None]
            assert (f"warning 0x{status:04X}" in caplog.text) == (status != 0)
        else:
            with pytest.raises(DeliveryError, match=f"0x{status:04X}") as failed:
                destination.send([path], lambda _, failure: told.append(failure))
            assert failed.value.transient is outcome
            assert pydicom.dcmread(path).SOPInstanceUID in str(failed.value)
            assert "Secret^Name is unknown" in str(told[0])
            assert "Secret" not in str(failed.value)  # that is logged
    assert "Secret" not in caplog.text


def test_wrong_titles_are_permanent_and_say_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path, radiograph())
    with scp(lambda event: 0, called=True) as port:
        with pytest.raises(DeliveryError, match="Correct the destination's ae_title") as failed:
            to(port, "OTHER").send([path])
        assert not failed.value.transient
    with scp(lambda event: 0, calling=["ONLY_ME"]) as port:
        with pytest.raises(DeliveryError, match="Enter PACS_NODE as a known node") as failed:
            to(port).echo()
        assert not failed.value.transient
        to(port, calling_ae_title="ONLY_ME").send([path])


def test_nobody_there_is_transient(tmp_path: Path, free_port: Callable[[], int]) -> None:
    destination = to(free_port())
    for attempt in (destination.echo, lambda: destination.send([write(tmp_path, radiograph())])):
        with pytest.raises(DeliveryError, match="no connection") as failed:
            attempt()
        assert failed.value.transient
    nowhere = DicomDestination(
        "PACS", Settings(type="dicom", ae_title="X", host="nowhere.invalid", port=104), "PACS_NODE"
    )
    with pytest.raises(DeliveryError, match=r"nowhere\.invalid") as failed:
        nowhere.echo()
    assert failed.value.transient


@pytest.mark.slow
def test_a_node_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(event: Any) -> int:
        release.wait(300)
        return 0

    with scp(hang) as port:
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="no answer to C-STORE") as failed:
            to(port, timeout=1.0).send([write(tmp_path, radiograph())])
        assert time.monotonic() - began < 60
        release.set()
    assert failed.value.transient
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(DeliveryError, match="no association") as failed:
            to(mute.getsockname()[1], timeout=1.0).echo()
        assert failed.value.transient


def test_a_lost_association_fails_the_rest_as_transient(tmp_path: Path) -> None:
    files = [write(tmp_path, radiograph(), f"{n}.dcm") for n in range(3)]
    seen: list[str] = []

    def answer(event: Any) -> int:
        seen.append(event.request.AffectedSOPInstanceUID)
        if len(seen) == 2:
            event.assoc.abort()
        return 0

    reported: list[str | None] = []
    with scp(answer) as port, pytest.raises(DeliveryError) as failed:
        to(port).send(files, lambda path, failure: reported.append(failure))
    assert failed.value.transient
    assert [failure is None for failure in reported] == [True, False, False]


def test_several_objects_use_one_association(tmp_path: Path) -> None:
    files = [write(tmp_path, radiograph(), f"{n}.dcm") for n in range(5)]
    associations: set[Any] = set()

    def answer(event: Any) -> int:
        associations.add(event.assoc)
        return 0

    with scp(answer) as port:
        to(port).send(files)
    assert len(associations) == 1


def test_what_is_no_dicom_file_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    good = write(tmp_path, radiograph())
    taken: list[Any] = []

    def answer(event: Any) -> int:
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0

    with scp(answer) as port, pytest.raises(DeliveryError, match=r"notes\.txt: not a DICOM file") as failed:
        to(port).send([text, good, tmp_path / "absent.dcm"])
    assert failed.value.transient  # the absent one
    assert len(taken) == 1
