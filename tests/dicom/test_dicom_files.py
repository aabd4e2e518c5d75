"""Files of any origin: read whole, read as a header, or refused with a reason."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from radiographs import DX, MAX_PIXELS, part10, radiograph, write

from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import derived_image
from pacs_node.dicom.files import encode, open_dicom, read_header
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.errors import Refused
from pacs_node.tasks import Task

LIMIT = 4 << 20


def refusal(path: Path, limit: int = LIMIT) -> Refused:
    with pytest.raises(Refused) as caught:
        open_dicom(path, limit)
    assert caught.value.reason
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    "content",
    [b"", b"DICM", bytes(200), b"%PDF-1.7" + bytes(500), b"\xff\xd8\xff\xe0" * 100, b"x" * 100_000],
    ids=["empty", "short", "zeros", "pdf", "jpeg", "text"],
)
def test_not_dicom(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert refusal(path).code == "not-dicom"
    with pytest.raises(Refused, match="DICOM"):
        read_header(path)


def test_preamble_and_then_garbage(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 20)
    assert refusal(path).code in ("unreadable", "not-dicom", "truncated", "no-sop-instance-uid")


def test_preamble_and_then_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(128) + b"DICM")
    assert refusal(path).code in ("not-dicom", "unreadable")


def test_larger_than_the_limit(tmp_path: Path) -> None:
    assert refusal(write(radiograph(), tmp_path / "file"), limit=10_000).code == "file-too-large"


def test_a_deflated_bomb_is_inflated_only_up_to_the_limit(tmp_path: Path) -> None:
    ds = radiograph()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.PixelData = bytes(64 << 20)
    path = write(ds, tmp_path / "file")
    assert path.stat().st_size < 1 << 20
    assert refusal(path, limit=1 << 20).code == "file-too-large"


def test_deflated(tmp_path: Path) -> None:
    ds = radiograph()
    plain = ds.PixelData
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = write(ds, tmp_path / "file")
    assert open_dicom(path, LIMIT).PixelData == plain
    header = read_header(path)
    assert "PixelData" not in header
    assert header.PatientID == "P1"
    assert read_radiograph(open_dicom(path, LIMIT), MAX_PIXELS).image.shape == (256, 232)
    cut = path.read_bytes()[:-2000]
    path.write_bytes(cut)
    assert refusal(path).code == "truncated"


def test_implicit_and_without_preamble(tmp_path: Path) -> None:
    ds = radiograph(DX)
    expected = read_radiograph(ds, MAX_PIXELS).image
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit = write(ds, tmp_path / "implicit")
    bare = tmp_path / "bare"
    content = implicit.read_bytes()
    bare.write_bytes(content[content.index(b"\x08\x00\x08\x00", 132) :])
    for path in (implicit, bare):
        read = open_dicom(path, LIMIT)
        assert read.SOPInstanceUID == ds.SOPInstanceUID
        np.testing.assert_array_equal(read_radiograph(read, MAX_PIXELS).image, expected)


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("SOPInstanceUID", None, "no-sop-instance-uid"),
        ("SOPInstanceUID", "", "no-sop-instance-uid"),
        ("StudyInstanceUID", None, "missing-uid"),
        ("SeriesInstanceUID", None, "missing-uid"),
        ("SOPInstanceUID", "../../etc/passwd", "bad-uid"),
        ("SOPInstanceUID", "1.2/../3", "bad-uid"),
        ("StudyInstanceUID", "1.2..3", "bad-uid"),
        ("SeriesInstanceUID", "1.2.3 4", "bad-uid"),
        ("StudyInstanceUID", "1." + "2" * 63, "bad-uid"),
        ("SOPInstanceUID", "1.2.\u0663", "bad-uid"),
    ],
)
@pytest.mark.filterwarnings("ignore:The value length")
def test_uids(tmp_path: Path, keyword: str, value: str | None, code: str) -> None:
    ds = radiograph()
    raw = (value or "").encode()
    raw += bytes(len(raw) % 2)
    placeholder = b"9" * len(raw)
    part10(ds)  # sets the file meta from the good UIDs
    if value is None:
        del ds[keyword]
    else:
        ds[keyword].value = placeholder.decode()
    path = tmp_path / "file"
    ds.preamble = bytes(128)
    ds.save_as(path, enforce_file_format=False)
    if raw:
        path.write_bytes(path.read_bytes().replace(placeholder, raw))
    assert refusal(path).code == code
    with pytest.raises(Refused) as caught:
        read_header(path)
    assert caught.value.code == code


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path, data: st.DataObject) -> None:
    """Only what follows the last pixel (padding, the sequence delimiter) may be missing."""
    ds = radiograph(DX, rows=64, columns=64)
    expected = read_radiograph(ds, MAX_PIXELS).image
    if data.draw(st.booleans()):
        ds.compress(RLELossless, generate_instance_uid=False)
    content = part10(ds)
    path = tmp_path / "file"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    image = expected
    with suppress(Refused):
        image = read_radiograph(open_dicom(path, LIMIT), MAX_PIXELS).image
    np.testing.assert_array_equal(image, expected)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_a_refusal_or_a_result(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is wrong in a header, the outcome is a result that passes its own check, or a reason."""
    content = bytearray(part10(radiograph(DX, rows=64, columns=64)))
    header = content.index(b"\xe0\x7f\x10\x00")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, header + 11))] = data.draw(st.integers(0, 255))
    path = tmp_path / "file"
    path.write_bytes(content)
    with suppress(Refused):
        ds = open_dicom(path, LIMIT)
        image = read_radiograph(ds, MAX_PIXELS)
        encode(derived_image(ds, image, image.image * np.float32(0.9), DERIVATION))


DERIVATION = Derivation(Task.BONE_SUPPRESSION, "model", "1", "sha256:" + "0" * 64)


def test_header_only_leaves_pixels_and_long_values_in_the_file(tmp_path: Path) -> None:
    ds = radiograph()
    ds.add_new(0x00420011, "OB", bytes(3 << 20))
    path = write(ds, tmp_path / "file")
    header = read_header(path)
    assert "PixelData" not in header
    assert len(header[0x00420011].value) == 3 << 20
    header = read_header(path)
    path.unlink()
    assert header.PatientID == "P1"
    with pytest.raises(OSError, match="file"):
        _ = header[0x00420011]


def test_encode_is_part_10_and_the_same_every_time(tmp_path: Path) -> None:
    ds = radiograph()
    content = encode(ds)
    assert encode(ds) == content
    path = tmp_path / "file"
    path.write_bytes(content)
    back = dcmread(path)
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert back.file_meta.ImplementationVersionName.startswith("PACSNODE")
    assert back.PixelData == ds.PixelData
