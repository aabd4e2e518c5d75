"""Images that are refused before or while they are decoded: each with its code, a reason and a remedy."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from radiographs import CR, DX, DX_RAW, MAX_PIXELS, radiograph

from pacs_node.dicom import codestream
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.errors import Refused
from pacs_node.phantom.dicom import transcode


def refused(ds: Dataset, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(Refused) as caught:
        read_radiograph(ds, max_pixels)
    assert caught.value.reason
    assert caught.value.remedy
    return caught.value.code


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"PixelData": None}, "no-pixel-data"),
        ({"PixelData": b""}, "no-pixel-data"),
        ({"Rows": None}, "missing-attribute"),
        ({"Columns": None}, "missing-attribute"),
        ({"Rows": 0}, "too-small"),
        ({"BitsAllocated": None}, "missing-attribute"),
        ({"SamplesPerPixel": None}, "missing-attribute"),
        ({"PhotometricInterpretation": None}, "missing-attribute"),
        ({"Rows": 1, "Columns": 1}, "too-small"),
        ({"Rows": 60_000, "Columns": 60_000}, "too-large"),
        ({"Rows": 8_000, "Columns": 100}, "odd-shape"),
        ({"BitsStored": 17, "HighBit": 16}, "bad-bits"),
        ({"BitsStored": 0}, "bad-bits"),
        ({"HighBit": 15}, "bad-bits"),
        ({"HighBit": 3}, "bad-bits"),
        ({"BitsAllocated": 12}, "bad-bits"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "bad-bits"),
        ({"PixelRepresentation": 2}, "bad-bits"),
        ({"BitsStored": 10, "HighBit": 9}, "bits-exceeded"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3}, "colour"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"NumberOfFrames": 0}, "multi-frame"),
    ],
    ids=str,
)
def test_header(elements: dict[str, Any], code: str) -> None:
    assert refused(radiograph(**elements)) == code


def test_one_frame_is_no_multi_frame() -> None:
    assert read_radiograph(radiograph(NumberOfFrames=1), MAX_PIXELS).image.shape == (256, 232)


def test_a_huge_image_is_refused_before_anything_is_allocated() -> None:
    ds = radiograph(Rows=60_000, Columns=60_000)
    tracemalloc.start()
    assert refused(ds, 100_000_000) == "too-large"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_truncated_pixel_data() -> None:
    ds = radiograph()
    ds.PixelData = ds.PixelData[:-2]
    assert refused(ds) == "truncated"


@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW])
def test_constant(sop_class: str) -> None:
    assert refused(radiograph(sop_class, image=np.full((64, 64), 0.5))) == "constant-image"


def test_only_padding() -> None:
    ds = radiograph(PixelPaddingValue=0, image=np.zeros((64, 64)))
    assert refused(ds) == "constant-image"


def compressed(syntax: UID) -> Dataset:
    ds = radiograph(bits=8)
    if syntax != JPEGBaseline8Bit:
        return transcode(ds, syntax)
    values = np.frombuffer(ds.PixelData, np.uint8).reshape(ds.Rows, ds.Columns)
    ds.PixelData = encapsulate([cv2.imencode(".jpg", values)[1].tobytes()])
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


SYNTAXES = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
class TestCompressed:
    def test_decodes(self, syntax: UID) -> None:
        expected = read_radiograph(radiograph(bits=8), MAX_PIXELS).image
        image = read_radiograph(compressed(syntax), MAX_PIXELS).image
        tolerance = 0.05 if syntax == JPEGBaseline8Bit else 0
        assert np.abs(image - expected).max() <= tolerance

    @pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
    def test_cut_short(self, syntax: UID, part: float, capfd: pytest.CaptureFixture[str]) -> None:
        ds = compressed(syntax)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        ds.PixelData = encapsulate([frame[: int(len(frame) * part)]])
        assert refused(ds) in ("truncated", "does-not-decode")
        assert capfd.readouterr().err == ""

    def test_damage(self, syntax: UID, capfd: pytest.CaptureFixture[str]) -> None:
        """A damaged frame gives a refusal or a picture, and at most a line on stderr."""
        ds = compressed(syntax)
        frame = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
        noise = np.random.default_rng(0).integers(0, 255, len(frame) // 3, dtype=np.uint8)
        frame[len(frame) // 2 : len(frame) // 2 + len(noise)] = noise.tobytes()
        ds.PixelData = encapsulate([bytes(frame)])
        code = "decoded"
        try:
            read_radiograph(ds, MAX_PIXELS)
        except Refused as error:
            code = error.code
        assert code in ("decoded", "does-not-decode", "bits-exceeded", "truncated")
        assert capfd.readouterr().err.count("\n") <= 1

    def test_all_noise(self, syntax: UID, capfd: pytest.CaptureFixture[str]) -> None:
        ds = compressed(syntax)
        noise = np.random.default_rng(0).integers(0, 255, 9000, dtype=np.uint8)
        ds.PixelData = encapsulate([noise.tobytes()])
        assert refused(ds) == "does-not-decode"
        assert capfd.readouterr().err == ""

    def test_not_encapsulated(self, syntax: UID) -> None:
        ds = compressed(syntax)
        ds.PixelData = b"no fragments here" * 100
        assert refused(ds) == "does-not-decode"

    def test_another_size_than_the_header(self, syntax: UID) -> None:
        ds = compressed(syntax)
        ds.Rows, ds.Columns = 128, 128
        assert refused(ds) in ("size-mismatch", "does-not-decode")


def test_a_codestream_that_announces_too_much_never_reaches_a_decoder() -> None:
    ds = compressed(JPEG2000Lossless)
    frame = bytearray(next(generate_frames(ds.PixelData, number_of_frames=1)))
    start = frame.index(b"\xff\x4f\xff\x51")
    frame[start + 8 : start + 16] = (60_000).to_bytes(4, "big") * 2
    ds.PixelData = encapsulate([bytes(frame)])
    header = codestream.inspect(bytes(frame))
    assert header is not None
    assert (header.rows, header.columns) == (60_000, 60_000)
    assert refused(ds) == "size-mismatch"


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.840.113619.5.2"]
)
def test_syntaxes_without_a_decoder(syntax: str) -> None:
    ds = compressed(JPEGBaseline8Bit)
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    assert refused(ds) == "transfer-syntax"


def test_no_transfer_syntax() -> None:
    ds = radiograph()
    del ds.file_meta.TransferSyntaxUID
    assert refused(ds) == "transfer-syntax"
    ds.file_meta.TransferSyntaxUID = UID("1.2.3")
    assert refused(ds) == "transfer-syntax"


def test_unused_bits_with_a_retired_overlay_are_masked() -> None:
    plain = radiograph(bits=12)
    expected = read_radiograph(plain, MAX_PIXELS).image
    values = np.frombuffer(plain.PixelData, "<u2").copy()
    values[::7] |= 0x8000
    plain.PixelData = values.tobytes()
    assert refused(plain) == "bits-exceeded"
    plain.add_new(0x60000102, "US", 15)
    np.testing.assert_array_equal(read_radiograph(plain, MAX_PIXELS).image, expected)


def test_signed_values_without_sign_extension() -> None:
    ds = radiograph(bits=12, signed=True)
    expected = read_radiograph(ds, MAX_PIXELS).image
    ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") & 0x0FFF).tobytes()
    np.testing.assert_array_equal(read_radiograph(ds, MAX_PIXELS).image, expected)
