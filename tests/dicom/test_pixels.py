"""From stored values to what a viewer shows, and back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from radiographs import CR, DX, DX_RAW, MAX_PIXELS, SC, chest, radiograph, write

from pacs_node.conditions import Conditions
from pacs_node.dicom.pixels import Radiograph, conditions, looks_inverted, read_radiograph
from pacs_node.errors import OutputError, Refused
from pacs_node.phantom.dicom import transcode


def read(ds: Dataset) -> Radiograph:
    return read_radiograph(ds, MAX_PIXELS)


def stored(ds: Dataset) -> np.ndarray:
    kind = ("<i" if ds.PixelRepresentation else "<u") + str(ds.BitsAllocated // 8)
    return np.frombuffer(ds.PixelData, kind)[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)


def close(image: np.ndarray, expected: np.ndarray, bits: int = 12) -> None:
    np.testing.assert_allclose(image, expected, atol=1.5 / (1 << bits))


@pytest.mark.parametrize("sop_class", [CR, DX, SC])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (10, False), (12, True), (15, False), (16, True)])
def test_both_polarities_are_bone_bright(sop_class: str, photometric: str, bits: int, signed: bool) -> None:
    radiograph_ = read(radiograph(sop_class, photometric=photometric, bits=bits, signed=signed))
    close(radiograph_.image, chest(), bits)
    assert radiograph_.image.dtype == np.float32
    assert radiograph_.source_bits == bits
    assert radiograph_.warnings == []
    assert not radiograph_.padding_mask.any()
    np.testing.assert_array_equal(radiograph_.to_stored(radiograph_.image), radiograph_.stored.values)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1500, 800), (2600.5, 1801.5), (2000, 9000)])
def test_windows_are_those_of_the_standard(function: str, centre: float, width: float) -> None:
    """Against pydicom's implementation of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    ds = radiograph(window=(centre, width), VOILUTFunction=function)
    expected = apply_windowing(stored(ds), ds) / 4095
    image = read(ds)
    assert image.warnings == []
    np.testing.assert_allclose(image.image, expected, atol=1e-6)


def test_the_first_of_several_windows() -> None:
    ds = radiograph(WindowCenter=[1500, 100], WindowWidth=[800, 10])
    np.testing.assert_array_equal(read(ds).image, read(radiograph(window=(1500, 800))).image)


def test_rescale() -> None:
    ds = radiograph(RescaleSlope="2", RescaleIntercept="-1000", window=(3096, 8190))
    expected = apply_windowing(apply_modality_lut(stored(ds), ds), ds)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    shown = read(ds).image
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.9999


def test_a_negative_slope_turns_the_polarity_and_comes_back() -> None:
    ds = radiograph(
        photometric="MONOCHROME1", RescaleSlope="-1", RescaleIntercept="4095", window=(2048, 4096)
    )
    image = read(ds)
    close(image.image, 1 - chest())
    result = image.to_stored(np.clip(image.image - np.float32(0.1), 0, 1))
    assert (result[image.image > 0.1].astype(int) < image.stored.values[image.image > 0.1]).all()


def lut(entries: Any, first: int, bits: int, *, as_bytes: bool = True) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    values = np.asarray(entries, dtype="<u2")
    item.add_new("LUTData", "OW" if as_bytes else "US", values.tobytes() if as_bytes else values.tolist())
    return item


@pytest.mark.parametrize("as_bytes", [True, False])
def test_modality_lut(as_bytes: bool) -> None:
    """A table that squares: shown squared, and the way back ends at the stored values of the source."""
    item = lut(np.arange(4096) ** 2 // 4095, 0, 12, as_bytes=as_bytes)
    item.ModalityLUTType = "US"
    ds = radiograph(ModalityLUTSequence=[item])
    image = read(ds)
    np.testing.assert_allclose(image.image, chest() ** 2, atol=3e-3)
    darker = image.image * np.float32(0.8)
    back = image.to_stored(darker)
    np.testing.assert_allclose(np.square(back / 4095), darker, atol=2e-3)


def test_voi_lut_goes_before_the_window() -> None:
    ds = radiograph(
        VOILUTSequence=[lut((np.linspace(0, 1, 4096) ** 0.5 * 65535).astype(int), 0, 16)], window=(1, 1)
    )
    np.testing.assert_allclose(read(ds).image, chest() ** 0.5, atol=2e-3)


def test_voi_lut_of_signed_pixels() -> None:
    item = lut(np.arange(4096) * 16, 0, 16)
    item.add_new("LUTDescriptor", "SS", [4096, -2048, 16])
    ds = radiograph(signed=True, VOILUTSequence=[item], window=None)
    np.testing.assert_allclose(read(ds).image, chest(), atol=2e-3)


def test_voi_lut_whose_descriptor_claims_too_many_bits() -> None:
    ds = radiograph(VOILUTSequence=[lut(np.arange(4096) // 4, 0, 16)], window=None)
    np.testing.assert_allclose(read(ds).image, chest(), atol=2e-3)


@pytest.mark.parametrize("keyword", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("fault", ["descriptor", "short", "no data", "bits"])
def test_a_lut_that_cannot_be_used_is_refused(keyword: str, fault: str) -> None:
    item = lut(np.arange(4096), 0, 12)
    if fault == "descriptor":
        del item.LUTDescriptor
    elif fault == "short":
        item.LUTData = item.LUTData[:100]
    elif fault == "no data":
        del item.LUTData
    else:
        item.add_new("LUTDescriptor", "US", [4096, 0, 40])
    with pytest.raises(Refused) as caught:
        read(radiograph(**{keyword: [item]}))
    assert caught.value.code == "bad-lut"


@pytest.mark.parametrize(
    ("window", "word"),
    [
        (None, "no window"),
        ((2048, 0), "no width"),
        ((2048, -5), "no width"),
        ((60_000, 100), "does not fit"),
        ((-60_000, 100), "does not fit"),
        ((2048, 1e30), "does not fit"),
        ((2048, 1), "does not fit"),
        ((float("nan"), 4096), "no window"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Values for elements with a VR of 'DS'", "ignore:Value length", "ignore:Invalid value"
)
def test_without_a_usable_window_percentiles_are_shown(window: tuple[float, float] | None, word: str) -> None:
    image = read(radiograph(window=window))
    assert len(image.warnings) == 1
    assert word in image.warnings[0]
    assert image.fitted_window is not None
    low, high = np.percentile(image.stored.values, [0.5, 99.5])
    assert image.fitted_window.low == pytest.approx(low, abs=2)
    assert image.fitted_window.high == pytest.approx(high, abs=2)
    np.testing.assert_allclose(
        image.image, np.clip((image.stored.values - low) / (high - low), 0, 1), atol=2e-3
    )


def test_an_unknown_voi_function_is_linear_with_a_warning() -> None:
    image = read(radiograph(VOILUTFunction="CUBIC"))
    close(image.image, chest())
    assert "CUBIC" in image.warnings[0]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("limit", [None, 40])
def test_padding(signed: bool, limit: int | None) -> None:
    lowest = -2048 if signed else 0
    image = chest().copy()
    image[:40] = 0
    image[40:60] = 30 / 4095
    elements: dict[str, Any] = {"PixelPaddingValue": lowest}
    if limit is not None:
        elements["PixelPaddingRangeLimit"] = lowest + limit
    ds = radiograph(signed=signed, image=image, window=None, **elements)
    result = read(ds)
    rows = 40 if limit is None else 60
    assert result.padding_mask[:rows].all()
    assert not result.padding_mask[rows:].any()
    assert (result.image[:rows] == 0).all()
    darkest = np.zeros_like(result.image)
    back = result.to_stored(darkest)
    np.testing.assert_array_equal(back[:rows], result.stored.values[:rows])
    assert not (back[rows:] == lowest).any()
    if limit is not None:
        assert (back[rows:] > lowest + limit).all()


def test_padding_does_not_bend_the_percentiles() -> None:
    image = chest().copy()
    image[:120] = 1
    shown = read(radiograph(image=image, window=None, PixelPaddingValue=4095))
    assert shown.fitted_window is not None
    assert shown.fitted_window.high < 4090


def test_padding_of_a_signed_image_written_as_unsigned() -> None:
    image = chest().copy()
    image[:30] = 0
    ds = radiograph(signed=True, bits=16, image=image)
    ds.add_new("PixelPaddingValue", "US", 0x8000)
    assert read(ds).padding_mask[:30].all()


@pytest.mark.parametrize("relationship", ["LIN", "LOG"])
@pytest.mark.parametrize("sign", [1, -1])
def test_for_processing(relationship: str, sign: int) -> None:
    """Raw detector values of a known attenuation are shown bone-bright, linear in the attenuation."""
    attenuation = chest()
    signal = np.exp(-3 * attenuation) if relationship == "LIN" else 1 - attenuation
    signal = signal if sign == 1 else 1 - signal
    ds = radiograph(
        DX_RAW,
        photometric="MONOCHROME2",
        bits=14,
        image=signal,
        PixelIntensityRelationship=relationship,
        PixelIntensityRelationshipSign=sign,
    )
    image = read(ds)
    assert image.warnings == []
    assert np.corrcoef(image.image.ravel(), attenuation.ravel())[0, 1] > 0.98
    darker = np.clip(image.image - np.float32(0.05), 0, 1)
    inside = (image.image > 0.1) & (image.image < 0.9)
    np.testing.assert_allclose(image.curve.show(image.to_stored(darker))[inside], darker[inside], atol=5e-3)


def test_for_processing_without_a_sign_says_so() -> None:
    ds = radiograph(DX_RAW, photometric="MONOCHROME1")
    del ds.PixelIntensityRelationshipSign
    image = read(ds)
    assert "Sign" in image.warnings[0]
    assert np.corrcoef(image.image.ravel(), chest().ravel())[0, 1] > 0.99


def test_a_secondary_capture_with_a_false_polarity_tag_is_read_by_its_pixels() -> None:
    true = read(radiograph(SC, photometric="MONOCHROME2"))
    ds = radiograph(SC, photometric="MONOCHROME2")
    ds.PhotometricInterpretation = "MONOCHROME1"
    false = read(ds)
    np.testing.assert_allclose(false.image, true.image, atol=1e-3)
    assert "contradict" in false.warnings[0]
    darker = np.clip(false.image - np.float32(0.1), 0, 1)
    np.testing.assert_allclose(false.to_stored(darker), true.to_stored(darker), atol=2)


def test_a_detector_image_is_read_by_its_tag_and_the_doubt_is_noted() -> None:
    ds = radiograph(DX, photometric="MONOCHROME2")
    ds.PhotometricInterpretation = "MONOCHROME1"
    image = read(ds)
    close(image.image, 1 - chest())
    assert "inverted" in image.warnings[0]


def test_polarity_check_on_real_radiographs(data_dir: Path) -> None:
    """None of 100 frontal radiographs is called inverted, and many of the inverted ones are."""
    paths = [
        *sorted((data_dir / "nih_cxr14" / "images").iterdir())[::10],
        *(data_dir / "jsrt_bse/cxr").iterdir(),
    ]
    found = 0
    for path in paths[:100]:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        assert not looks_inverted(image), path.name
        found += looks_inverted(1 - image)
    assert found > 30


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(8, 16),
    signed=st.booleans(),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    window=st.one_of(st.none(), st.tuples(st.floats(-0.5, 1.5), st.floats(0.001, 3))),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    padding=st.one_of(st.none(), st.floats(0, 1)),
    seed=st.integers(0, 1 << 30),
)
def test_way_back(
    bits: int,
    signed: bool,
    photometric: str,
    window: tuple[float, float] | None,
    function: str,
    padding: float | None,
    seed: int,
) -> None:
    """What is unchanged stays exactly what it was; what is changed is shown as asked."""
    random = np.random.default_rng(seed)
    top = (1 << bits) - 1
    lowest = -(1 << bits - 1) if signed else 0
    ds = radiograph(
        bits=bits,
        signed=signed,
        photometric=photometric,
        window=None,
        image=random.random((64, 64)),
        VOILUTFunction=function,
    )
    if window is not None:
        ds.WindowCenter = f"{lowest + window[0] * top:.6g}"
        ds.WindowWidth = f"{1 + window[1] * top:.6g}"
    if padding is not None:
        ds.PixelPaddingValue = lowest + round(padding * top)
        ds["PixelPaddingValue"].VR = "SS" if signed else "US"
    image = read(ds)
    values = image.stored.values
    np.testing.assert_array_equal(image.to_stored(image.image), values)
    np.testing.assert_array_equal(image.to_stored(image.image.copy()), values)

    wanted = image.image.copy()
    changed = random.random(wanted.shape) < 0.5
    wanted[changed] = random.random(int(changed.sum()))
    back = image.to_stored(wanted)
    assert back.dtype == values.dtype
    assert back.min() >= image.stored.lowest
    assert back.max() <= image.stored.highest
    same = (wanted == image.image) | image.padding_mask
    np.testing.assert_array_equal(back[same], values[same])
    if image.padding_range is not None:
        low, high = image.padding_range
        assert not ((back >= low) & (back <= high) & ~image.padding_mask).any()
    # Where source and wish are inside the window (a sigmoid has flat tails), it is shown as wished.
    low, high = image.curve.display.min() + 0.01, image.curve.display.max() - 0.01
    inside = ~same & (np.abs(image.image - 0.5) < 0.499) & (wanted > low) & (wanted < high)
    step = np.abs(np.diff(image.curve.display)).max()
    shown = image.curve.show(back)
    tolerance = 2.5 * step + 1e-5
    assert (np.abs(shown - wanted)[inside] <= tolerance).all()


def test_values_beyond_the_window_keep_their_distance() -> None:
    ds = radiograph(window=(1500, 1001))
    image = read(ds)
    bright = image.stored.values > 2100
    assert bright.any()
    darker = image.image.copy()
    darker[bright] -= 0.1
    back = image.to_stored(darker)
    np.testing.assert_allclose(image.stored.values[bright] - back[bright].astype(int), 100, atol=1)


def test_what_is_no_image_of_this_source_is_refused() -> None:
    image = read(radiograph())
    with pytest.raises(OutputError, match="shape"):
        image.to_stored(image.image[:-1])
    broken = image.image.copy()
    broken[0, 0] = np.nan
    with pytest.raises(OutputError, match="finite"):
        image.to_stored(broken)


SYNTAXES = {
    "1.2.840.10008.1.2": ("dcmconv", "+ti"),
    "1.2.840.10008.1.2.2": ("dcmconv", "+tb"),
    "1.2.840.10008.1.2.1.99": ("dcmconv", "+td"),
    "1.2.840.10008.1.2.4.57": ("dcmcjpeg", "+el"),
    "1.2.840.10008.1.2.4.70": ("dcmcjpeg", "+e1"),
    "1.2.840.10008.1.2.4.80": ("dcmcjpls", "+el"),
    "1.2.840.10008.1.2.4.81": ("dcmcjpls", "+en"),
    "1.2.840.10008.1.2.4.50": ("dcmcjpeg", "+eb"),
    "1.2.840.10008.1.2.4.51": ("dcmcjpeg", "+ee"),
    "1.2.840.10008.1.2.5": ("dcmcrle",),
}
LOSSY = {"1.2.840.10008.1.2.4.50": 0.05, "1.2.840.10008.1.2.4.51": 0.05, "1.2.840.10008.1.2.4.81": 0.01}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_transfer_syntaxes_of_dcmtk(
    syntax: str, bits: int, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    if syntax.endswith((".50", ".51")) and bits != 8:
        bits = 8
    ds = radiograph(bits=bits, photometric="MONOCHROME1")
    expected = read(ds).image
    tool, *options = SYNTAXES[syntax]
    target = tmp_path / "target"
    subprocess.run(
        [require_tool(tool), *options, write(ds, tmp_path / "source"), target],
        check=True,
        capture_output=True,
    )
    encoded = dcmread(target)
    assert encoded.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_allclose(read(encoded).image, expected, atol=LOSSY.get(syntax, 0))


def test_12_bit_lossy_jpeg_decodes_to_the_values_of_dcmtk(
    tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    source, encoded, decoded = (
        write(radiograph(), tmp_path / "source"),
        tmp_path / "encoded",
        tmp_path / "decoded",
    )
    subprocess.run([require_tool("dcmcjpeg"), "+ee", source, encoded], check=True)
    subprocess.run([require_tool("dcmdjpeg"), encoded, decoded], check=True)
    assert dcmread(encoded).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.51"
    np.testing.assert_array_equal(read(dcmread(encoded)).image, read(dcmread(decoded)).image)


def test_8_bit_jpeg_2000_in_16_bits_allocated_keeps_its_type() -> None:
    ds = transcode(radiograph(bits=8), "1.2.840.10008.1.2.4.90")
    ds.BitsAllocated = 16
    image = read(ds)
    assert image.to_stored(image.image).dtype == np.uint16
    close(image.image, chest(), 8)


@pytest.mark.parametrize("bits", [8, 10, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"]
)
def test_transfer_syntaxes_of_gdcm(syntax: str, bits: int, signed: bool) -> None:
    if signed and syntax.endswith(".80"):
        pytest.skip("GDCM encodes no signed JPEG-LS")
    ds = radiograph(bits=bits, signed=signed)
    np.testing.assert_array_equal(read(transcode(ds, syntax)).image, read(ds).image)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, Conditions(56.0, "F", "PA")),
        ({"PatientAge": "018M"}, Conditions(1.5, "F", "PA")),
        ({"PatientAge": "62"}, Conditions(62.0, "F", "PA")),
        ({"PatientAge": "999Y"}, Conditions(None, "F", "PA")),
        ({"PatientAge": None}, Conditions(56.0, "F", "PA")),
        ({"PatientAge": "old"}, Conditions(56.0, "F", "PA")),
        ({"PatientAge": None, "PatientBirthDate": "18000101"}, Conditions(None, "F", "PA")),
        ({"PatientAge": None, "PatientBirthDate": "19701332"}, Conditions(None, "F", "PA")),
        ({"PatientAge": None, "PatientBirthDate": None}, Conditions(None, "F", "PA")),
        ({"PatientSex": "O", "ViewPosition": "LL"}, Conditions(56.0, None, None)),
        ({"PatientSex": "m", "ViewPosition": "ap"}, Conditions(56.0, "M", "AP")),
        ({"PatientSex": None, "ViewPosition": None}, Conditions(56.0, None, None)),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Invalid value for VR", "ignore:A value of type", "ignore:The value length"
)
def test_conditions(elements: dict[str, Any], expected: Conditions) -> None:
    assert conditions(radiograph(**elements)) == expected


@pytest.mark.parametrize(("code", "view"), [("272479007", "PA"), ("R-10206", "AP"), ("1", None)])
def test_view_code(code: str, view: str | None) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "view"
    assert conditions(radiograph(ViewPosition=None, ViewCodeSequence=[item])).view == view
