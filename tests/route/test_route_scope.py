# ruff: noqa: E501  (tables: one case a line)
"""Which headers say that an object is not a frontal chest radiograph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pacs_node.dicom.codes import item
from pacs_node.dicom.files import read_header
from pacs_node.route.scope import out_of_scope

DX = "1.2.840.10008.5.1.4.1.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"

CHEST_FIXTURES = [
    "cr_frn_pa_mono1_10bit_jpeg-lossless-sv1_2140x1760.dcm",
    "fuji_cr_pa_mono1_10bit_explicitLE_440px.dcm",
    "nih_dx_mono2_8bit_implicitLE_1024_M81_nofinding.dcm",
    "philips_cr_pa_mono1_15bit_j2k-lossy_RG1.dcm",
    "philips_cr_pa_mono1_15bit_jpegls-near_RG1.dcm",
    "siim_cr_pa_FAKE-mono1_8bit_jpeg-baseline.dcm",
    "siim_cr_pa_mono2_8bit_jpeg-baseline_1024_M62.dcm",
]
OTHER_FIXTURES = {
    "NEG_canine_lateral_thorax_dx_mono1.dcm": "not-human",
    "NEG_hip_cr_mono2_jpeg-lossless_RG2.dcm": "not-chest",
    "NEG_hip_cr_mono2_rle_RG2.dcm": "not-chest",
    "NEG_tibia_cr_mono1_rle_RG3.dcm": "not-chest",
}


@pytest.mark.parametrize("name", CHEST_FIXTURES)
def test_real_chest_radiographs_pass(data_dir: Path, name: str) -> None:
    assert out_of_scope(read_header(data_dir / "dicom" / name)) is None


@pytest.mark.parametrize("name", OTHER_FIXTURES)
def test_real_other_objects_are_refused(data_dir: Path, name: str) -> None:
    refusal = out_of_scope(read_header(data_dir / "dicom" / name))
    assert refusal is not None
    assert refusal.code == OTHER_FIXTURES[name]
    assert refusal.remedy


def header(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in {"SOPClassUID": DX, "Modality": "DX", **values}.items():
        if isinstance(value, list) and value and isinstance(value[0], Code):
            value = [item(code) for code in value]
        setattr(ds, keyword, value)
    return ds


C = codes.cid4010
R = codes.cid4031
PASSES: dict[str, dict[str, Any]] = {
    "silent": {},
    "processing": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
    "no modality": {"Modality": ""},
    "gateway's secondary capture": {"SOPClassUID": SC, "Modality": "CR"},
    **{f"part {p}": {"BodyPartExamined": p} for p in (
        "CHEST", "THORAX", "LUNG", "CHEST PA", "CHEST_AP", "PORT CHEST", "TORACE", "TORAX", "UNKNOWN", "OTHER", "")},
    "region chest": {"AnatomicRegionSequence": [R.Chest]},
    "region lung, old code": {"AnatomicRegionSequence": [Code("T-28000", "SRT", "Lung")]},
    "region in words": {"AnatomicRegionSequence": [Code("X1", "99SITE", "Chest")]},
    "region without a code": {"AnatomicRegionSequence": [Dataset()]},
    **{f"view {v}": {"ViewPosition": v} for v in ("PA", "AP", "AP SUPINE", "PA_ERECT", "")},
    "view code PA": {"ViewCodeSequence": [C.PosteroAnterior]},
    "view code AP": {"ViewCodeSequence": [C.AnteroPosterior]},
    "orientation": {"PatientOrientation": ["L", "F"]},
    "orientation turned": {"PatientOrientation": ["F", "L"]},
    "orientation with refinement": {"PatientOrientation": ["LA", "F"]},
    "one frame": {"NumberOfFrames": "1"},
    "human": {"PatientSpeciesDescription": "Homo sapiens"},
    "human by code": {"PatientSpeciesCodeSequence": [Code("337915000", "SCT", "homo sapiens")]},
    "series of both views": {"SeriesDescription": "CHEST PA AND LATERAL"},
    "PA in a series called lateral": {"SeriesDescription": "LAT", "ViewPosition": "PA"},
    "platform": {"SeriesDescription": "Platelet flat plate"},
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_passes(name: str) -> None:
    refusal = out_of_scope(header(**PASSES[name]))
    assert refusal is None, str(refusal)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "CT": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "not-radiograph", "CT Image Storage"),
    "mammogram": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2"}, "not-radiograph", "Mammography"),
    "report": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "not-radiograph", "Comprehensive SR"),
    "private class": ({"SOPClassUID": "1.2.3.4"}, "not-radiograph", "private"),
    "screenshot": ({"SOPClassUID": SC, "Modality": "OT"}, "not-radiograph", "Secondary Capture"),
    "screenshot of no modality": ({"SOPClassUID": SC, "Modality": ""}, "not-radiograph", "absent"),
    "another modality": ({"Modality": "MG"}, "not-radiograph", "MG"),
    "frames": ({"NumberOfFrames": "12"}, "multi-frame", "12"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", "LOCALIZER"),
    "quadruped": ({"AnatomicalOrientationType": "QUADRUPED"}, "not-human", "QUADRUPED"),
    "species by code": ({"PatientSpeciesCodeSequence": [Code("448771007", "SCT", "Canis lupus familiaris")]},
                        "not-human", "448771007"),
    "species in words": ({"PatientSpeciesDescription": "Feline"}, "not-human", "Feline"),
    "breed": ({"PatientBreedDescription": "Beagle"}, "not-human", "Breed"),
    "veterinary protocol": ({"ProtocolName": "EQUINE_THORAX"}, "not-human", "equine"),
    **{f"part {p}": ({"BodyPartExamined": p}, "not-chest", p) for p in (
        "HIP", "EXTREMITY", "SHOULDER", "RIB", "STERNUM", "TSPINE", "HEART", "BREAST", "ABDOMEN", "CHESTABDOMEN",
        "CHESTABDPELVIS", "NECKCHEST", "CHEST ABDOMEN", "THORAX RIBS", "KNEE")},
    "region": ({"AnatomicRegionSequence": [R.Knee]}, "not-chest", "72696002"),
    "region of more": ({"AnatomicRegionSequence": [R.ChestAndAbdomen]}, "not-chest", "416550000"),
    **{f"view {v}": ({"ViewPosition": v}, "not-frontal", v) for v in (
        "LL", "RL", "LAT", "LATERAL", "LLAT", "RLO", "LLO", "RAO", "LPO", "OBLIQUE", "RLD", "LLD", "AXIAL", "LAT ERECT")},
    **{f"view code {c}": ({"ViewCodeSequence": [getattr(C, c)]}, "not-frontal", getattr(C, c).value) for c in (
        "LeftLateral", "RightLateral", "LateralProjection", "Sagittal", "LeftAnteriorOblique", "RightPosteriorOblique")},
    "view code of old": ({"ViewCodeSequence": [Code("R-10236", "SNM3", "left lateral")]}, "not-frontal", "R-10236"),
    "view code in words": ({"ViewCodeSequence": [Code("9", "99SITE", "Lateral erect")]}, "not-frontal", "Lateral"),
    "orientation lateral": ({"PatientOrientation": ["A", "F"]}, "not-frontal", "A\\F, a lateral view"),
    "orientation lateral, turned": ({"PatientOrientation": ["H", "P"]}, "not-frontal", "lateral"),
    "orientation axial": ({"PatientOrientation": ["L", "P"]}, "not-frontal", "axial"),
    "series": ({"SeriesDescription": "Chest Lat."}, "not-frontal", "SeriesDescription"),
    "processing": ({"AcquisitionDeviceProcessingDescription": "CHEST,LATERAL"}, "not-frontal", "lateral"),
    "protocol code": ({"PerformedProtocolCodeSequence": [Code("1", "99SITE", "THORAX LATERAL")]}, "not-frontal", "Protocol"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    values, code, words = REFUSED[name]
    refusal = out_of_scope(header(**values))
    assert refusal is not None
    assert refusal.code == code
    assert words in refusal.reason
    assert refusal.remedy


def test_every_view_of_the_standard_but_the_frontal_ones_is_known_not_to_be_frontal() -> None:
    frontal = {"AnteroPosterior", "PosteroAnterior", "Frontal"}
    # Projections of other body parts; a chest is not taken so
    elsewhere = {
        *("Acanthioparietal", "AxialProjection", "CaudoCranial", "CranioCaudal", "Dorsoplantar", "OcclusalProjection"),
        *("Orbitoparietal", "ParietoOrbital", "Parietoacanthial", "Plantodorsal", "Submentovertical", "Tangential"),
        *("TissueSpecimen", "Verticosubmental"),
    }  # fmt: skip
    for name in dir(C):
        code = getattr(C, name)
        if isinstance(code, Code) and name not in elsewhere:
            refusal = out_of_scope(header(ViewCodeSequence=[code]))
            assert (refusal is None) is (name in frontal), name


def test_a_sequence_that_is_none_does_not_matter() -> None:
    ds = header()
    ds.add_new("PatientSpeciesCodeSequence", "LO", "text where a sequence belongs")
    ds.add_new("ViewCodeSequence", "LO", "")
    assert out_of_scope(ds) is None
