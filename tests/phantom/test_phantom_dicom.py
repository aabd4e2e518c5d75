"""The phantom's DICOM objects are valid, and what went in is what a reader gets out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from pacs_node.phantom import Phantom
from pacs_node.phantom.dicom import COMPRESSED, NAMES, PLAIN, Acquisition, image, study

pytestmark = pytest.mark.xdist_group("phantom")  # its patients are drawn once for all of them
CR, DX = ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation
ACQUISITIONS = {
    "dx": Acquisition(DX, rows=128, columns=128),
    "dx-monochrome1-14bit-ap": Acquisition(DX, "MONOCHROME1", 14, view="AP", sex="F", rows=128, columns=128),
    "dx-for-processing": Acquisition(DigitalXRayImageStorageForProcessing, bits=16, rows=128, columns=128),
    "cr-monochrome1": Acquisition(CR, "MONOCHROME1", 10, rows=128, columns=104),
    "cr-8bit": Acquisition(CR, bits=8, rows=104, columns=128),
}


@pytest.mark.parametrize("how", ACQUISITIONS.values(), ids=ACQUISITIONS)
def test_dciodvfy_finds_nothing(how: Acquisition, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    path = tmp_path / "image.dcm"
    image(1, 1, how).save_as(path, enforce_file_format=True)
    run = subprocess.run(
        [require_tool("dciodvfy"), "-new", path], capture_output=True, text=True, check=False
    )
    found = [x for x in (run.stdout + run.stderr).splitlines() if x.startswith(("Error", "Warning"))]
    assert found == []


@pytest.mark.slow
def test_the_demo_study_is_one_patient_and_two_series() -> None:
    first, second = study(1, rows=128, columns=128)
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.PatientID == second.PatientID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert (first.Modality, second.Modality) == ("DX", "CR")
    assert (first.BitsStored, second.BitsStored) == (12, 10)
    assert (first.PhotometricInterpretation, second.PhotometricInterpretation) == (
        "MONOCHROME2",
        "MONOCHROME1",
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_object() -> None:
    one, two = study(1, rows=128, columns=128)[0], study(1, rows=128, columns=128)[0]
    assert one == two
    assert image(4, 1, Acquisition(rows=128, columns=128)).SOPInstanceUID != one.SOPInstanceUID


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_stored_values_show_the_phantom(photometric: str) -> None:
    ds = image(1, 1, Acquisition(DX, photometric, 12, rows=128, columns=128))
    low, width = float(ds.WindowCenter) - float(ds.WindowWidth) / 2, float(ds.WindowWidth)
    shown = (ds.pixel_array - low) / (width - 1)
    expected = Phantom(1).render(128).radiograph
    np.testing.assert_allclose(shown if photometric == "MONOCHROME2" else 1 - shown, expected, atol=1e-3)


@pytest.mark.parametrize("transfer_syntax", [*PLAIN, *COMPRESSED])
def test_every_transfer_syntax_holds_the_same_pixels(transfer_syntax: str, tmp_path: Path) -> None:
    plain = image(1, 1, Acquisition(rows=128, columns=128))
    how = Acquisition(rows=128, columns=128, transfer_syntax=transfer_syntax)
    path = tmp_path / "image.dcm"
    image(1, 1, how).save_as(path, enforce_file_format=True)
    read = dcmread(path)
    assert read.file_meta.TransferSyntaxUID == transfer_syntax
    np.testing.assert_array_equal(read.pixel_array, plain.pixel_array)
    if transfer_syntax in (*COMPRESSED, DeflatedExplicitVRLittleEndian):
        assert path.stat().st_size < 128 * 128 * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_survive_their_character_set(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    study(1, rows=128, columns=128, name=name)[0].save_as(path, enforce_file_format=True)
    read = dcmread(path)
    charset, text = NAMES[name]
    assert str(read.PatientName) == text
    assert read.get("SpecificCharacterSet") == (charset if len(charset) > 1 else charset[0])


@pytest.mark.parametrize(
    "wrong", [{"bits": 17}, {"photometric": "RGB"}, {"name": "klingon"}, {"transfer_syntax": "1.2.3"}]
)
def test_wrong_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"cannot encode|must be one of"):
        study(1, rows=128, columns=128, **wrong)
