"""Derived images: what they say, that validators agree, and that a viewer shows them as their source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from radiographs import CR, DX, DX_RAW, MAX_PIXELS, NAMES, SC, chest, radiograph, write
from validators import errors

from pacs_node.dicom import codes, identity, uids
from pacs_node.dicom.derivation import Derivation
from pacs_node.dicom.derived import derived_image
from pacs_node.dicom.files import encode, open_dicom
from pacs_node.dicom.pixels import read_radiograph
from pacs_node.dicom.selfcheck import check
from pacs_node.errors import OutputError, Refused
from pacs_node.tasks import Task

BONES = Derivation(
    Task.BONE_SUPPRESSION,
    "ribless",
    "1.2",
    "sha256:" + "ab" * 32,
    {"sampler": "ddim", "steps": 20, "seed": 7, "provider": "CPUExecutionProvider"},
)
RESTORED = Derivation(Task.RESTORATION, "clear", "2.0", "sha256:" + "cd" * 32)


def darker(source: Dataset, by: float = 0.05) -> np.ndarray:
    image = read_radiograph(source, MAX_PIXELS).image
    return np.clip(image - np.float32(by), 0, 1)


def derive(source: Dataset, derivation: Derivation = BONES) -> Dataset:
    return derived_image(source, read_radiograph(source, MAX_PIXELS), darker(source), derivation)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "8 bits": {"bits": 8},
    "16 bits": {"bits": 16},
    "no window": {"window": None},
    "odd matrix": {"image": chest(256, 232)[:251, :231], "bits": 8},
    "korean": {"charset": "korean"},
    "japanese": {"charset": "japanese"},
    "chinese": {"charset": "chinese"},
    "unicode": {"charset": "unicode"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW, SC], ids=["CR", "DX", "DX for processing", "SC"])
def test_dciodvfy_finds_nothing_that_the_source_has_not(
    sop_class: str, photometric: str, variant: str, tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    source = radiograph(sop_class, photometric=photometric, **VARIANTS[variant])
    known = errors(require_tool, write(source, tmp_path / "source"))
    for derivation in (BONES, RESTORED):
        path = tmp_path / derivation.task
        path.write_bytes(encode(derive(open_dicom(tmp_path / "source", 1 << 30), derivation)))
        assert errors(require_tool, path) <= known


@pytest.mark.parametrize("signed", [False, True])
def test_dciodvfy_on_signed_pixels(signed: bool, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    source = radiograph(CR, signed=signed, PixelPaddingValue=-2048 if signed else 0)
    known = errors(require_tool, write(source, tmp_path / "source"))
    path = tmp_path / "derived"
    path.write_bytes(encode(derive(source)))
    assert errors(require_tool, path) <= known
    assert known == set()


@pytest.mark.parametrize("sop_class", [CR, DX, DX_RAW, SC])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True)])
def test_a_viewer_shows_it_as_its_source(
    sop_class: str, photometric: str, bits: int, signed: bool, tmp_path: Path
) -> None:
    """Reading the written object again gives the image that was asked for, unchanged pixels exactly."""
    source = radiograph(sop_class, photometric=photometric, bits=bits, signed=signed)
    before = read_radiograph(source, MAX_PIXELS)
    wanted = before.image.copy()
    wanted[100:150] = np.clip(wanted[100:150] - np.float32(0.1), 0.02, 1)
    path = tmp_path / "derived"
    path.write_bytes(encode(derived_image(source, before, wanted, BONES)))
    ds = dcmread(path)
    after = read_radiograph(ds, MAX_PIXELS)
    assert after.warnings == []
    np.testing.assert_array_equal(after.stored.values[:100], before.stored.values[:100])
    if sop_class != DX_RAW:  # has no window: the percentiles are those of the new pixels
        np.testing.assert_allclose(after.image, wanted, atol=0.6 / ((1 << bits) - 1))
    for keyword in ("Rows", "Columns", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"):
        assert ds[keyword].value == source[keyword].value
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "WindowCenter", "WindowWidth"):
        assert ds.get(keyword) == source.get(keyword)


def test_what_it_says_of_itself() -> None:
    source = radiograph(DX, FrameOfReferenceUID="1.2.3")
    ds = derive(source)
    assert ds.SOPClassUID == DX
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "", "BONE_SUPPRESSED"]
    assert list(derive(source, RESTORED).ImageType)[3] == "RESTORED"
    assert "AI" in ds.SeriesDescription
    assert "not for diagnosis" in ds.SeriesDescription
    assert ds.ContentQualification == "RESEARCH"
    assert derive(source, replace(BONES, qualification="PRODUCT")).ContentQualification == "PRODUCT"
    for keyword in ("StudyInstanceUID", "AccessionNumber", "PatientID", "PatientName", "FrameOfReferenceUID"):
        assert ds[keyword].value == source[keyword].value
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert ds.SOPInstanceUID != source.SOPInstanceUID
    reference = ds.SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.SpatialLocationsPreserved == "YES"
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert ds.DerivationCodeSequence[0].CodingSchemeDesignator == codes.SCHEME
    assert [i.CodingSchemeDesignator for i in ds.CodingSchemeIdentificationSequence] == [codes.SCHEME]
    for word in ("ribless", "1.2", "sampler ddim", "steps 20", "seed 7", "not for diagnosis"):
        assert word in ds.DerivationDescription


def test_equipment() -> None:
    source = radiograph()
    earlier = Dataset()
    earlier.PurposeOfReferenceCodeSequence = [codes.item(codes.ACQUISITION_EQUIPMENT)]
    earlier.Manufacturer = "Before"
    source.ContributingEquipmentSequence = [earlier]
    ds = derive(source)
    assert (ds.Manufacturer, ds.ManufacturerModelName) == (identity.MANUFACTURER, identity.MODEL_NAME)
    assert ds.SoftwareVersions[0].startswith("pacs-node ")
    assert ds.SoftwareVersions[1] == "ribless 1.2"
    first, modality, node = ds.ContributingEquipmentSequence
    assert first.Manufacturer == "Before"
    assert modality.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (modality.Manufacturer, modality.ManufacturerModelName) == ("Maker", "Modality")
    assert node.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert node.DeviceUID == ds.DeviceUID == uids.device(BONES.model_digest)
    assert derive(source, replace(BONES, model_digest="sha256:" + "00" * 32)).DeviceUID != ds.DeviceUID
    assert identity.is_own_result(ds)
    assert not identity.is_own_result(source)
    ds.Manufacturer = ds.ManufacturerModelName = "Some PACS"
    assert identity.is_own_result(ds), "still known by its Contributing Equipment"


def test_made_again_it_is_the_same_bytes_and_uids_follow_source_task_and_model() -> None:
    source = radiograph()
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    ds = derive(source, replace(BONES, created=created))
    again = derive(radiograph(), replace(BONES, created=created, parameters=dict(BONES.parameters)))
    assert encode(ds) == encode(again)
    assert (ds.ContentDate, ds.ContentTime) == ("20260102", "030405")
    assert derive(source).ContentDate == source.ContentDate
    others = [
        derive(radiograph(SOPInstanceUID="1.2.3.4")),
        derive(source, RESTORED),
        derive(source, replace(BONES, model_digest="sha256:" + "00" * 32)),
        derive(source, replace(BONES, parameters={**BONES.parameters, "steps": 50})),
    ]
    assert len({str(d.SOPInstanceUID) for d in [ds, *others]}) == 5
    other_provider = derive(source, replace(BONES, parameters={**BONES.parameters, "provider": "CUDA"}))
    assert other_provider.SOPInstanceUID == ds.SOPInstanceUID
    assert others[0].SeriesInstanceUID == ds.SeriesInstanceUID
    assert others[1].SeriesInstanceUID != ds.SeriesInstanceUID
    assert all(uids.is_uid(str(d.SOPInstanceUID)) for d in others)


def test_series_numbers_are_apart_for_each_source_series_and_task() -> None:
    numbers = [
        int(derive(radiograph(SeriesNumber=n), d).SeriesNumber)
        for n in (1, 2, 10, 11, 1001)
        for d in (BONES, RESTORED)
    ]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 1_000_000
    assert max(numbers) < 1 << 31
    assert derive(radiograph(SeriesNumber=None)).SeriesNumber > 1_000_000


STUDIES = {"korean": "흉부", "japanese": "胸部", "chinese": "胸部", "unicode": "胸部"}


@pytest.mark.parametrize("charset", NAMES)
@pytest.mark.parametrize("sop_class", [CR, DX])
def test_names_are_carried_byte_for_byte(sop_class: str, charset: str, tmp_path: Path) -> None:
    source = radiograph(sop_class, charset=charset, StudyDescription=STUDIES[charset])
    path = write(source, tmp_path / "source")
    raw = {k: dcmread(path).get_item(k).value for k in ("PatientName", "StudyDescription")}
    path = tmp_path / "derived"
    path.write_bytes(encode(derive(open_dicom(tmp_path / "source", 1 << 30))))
    ds = dcmread(path)
    assert {k: ds.get_item(k).value for k in raw} == raw
    assert ds.SpecificCharacterSet == source.SpecificCharacterSet
    for part in ("alphabetic", "ideographic", "phonetic"):
        assert getattr(ds.PatientName, part) == getattr(source.PatientName, part)
    assert ds.StudyDescription == STUDIES[charset]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_text_that_does_not_fit_its_character_set_is_carried_too(syntax: UID, tmp_path: Path) -> None:
    """Shift JIS under a header that says nothing, a GBK backslash, and damaged UTF-8; in sequences too."""
    names = {"": "山田^太郎".encode("shift_jis"), "GB18030": b"\xd5\x5c^x", "ISO_IR 192": b"M\xfcll^xx"}
    for charset, raw in names.items():
        item = Dataset()
        name = item.RequestedProcedureDescription = "x" * len(raw)
        source = radiograph(PatientName=name, SpecificCharacterSet=charset, RequestAttributesSequence=[item])
        source.file_meta.TransferSyntaxUID = syntax
        path = write(source, tmp_path / "source")
        path.write_bytes(path.read_bytes().replace(name.encode(), raw))
        assert encode(derive(open_dicom(path, 1 << 30))).count(raw) == 2


def test_what_is_not_carried() -> None:
    source = radiograph(DX)
    source.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "secret")
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, "1.2.3"
    item.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "secret")
    source.ReferencedStudySequence = [item]
    source.IconImageSequence = [Dataset()]
    source.ImageComments = "of the source"
    source.OperatorsName = "Someone"
    source.DigitalSignaturesSequence = [Dataset()]
    source.add_new(0x60000010, "US", 8)
    source.add_new(0x60000022, "LO", "overlay")
    ds = derive(source)
    for keyword in ("IconImageSequence", "ImageComments", "OperatorsName", "DigitalSignaturesSequence"):
        assert keyword not in ds
    assert ds.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert not [e.tag for e in ds.iterall() if e.tag.is_private or 0x6000 <= e.tag.group < 0x6100]
    assert "VENDOR" in {e.value for e in source.iterall() if e.tag.is_private}, "the source is as it was"


def test_lossy_once_is_lossy_for_good() -> None:
    ds = derive(radiograph(LossyImageCompression="01", LossyImageCompressionRatio="10"))
    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 10)
    assert derive(radiograph()).LossyImageCompression == "00"


def test_burned_in_annotation_of_the_source_stays() -> None:
    assert derive(radiograph(BurnedInAnnotation="YES")).BurnedInAnnotation == "YES"
    assert derive(radiograph()).BurnedInAnnotation == "NO"


def test_windows() -> None:
    """A usable window stays; a missing one is fitted for presentation and never written for processing."""
    assert derive(radiograph(window=(1500, 900))).WindowWidth == 900
    fitted = derive(radiograph(DX, window=None))
    assert 2500 < fitted.WindowWidth < 4000
    raw = derive(radiograph(DX_RAW))
    assert "WindowWidth" not in raw
    assert raw.PresentationIntentType == "FOR PROCESSING"


def test_modality_lut_is_carried_because_stored_values_keep_their_meaning() -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "OW", (np.arange(4096) ** 2 // 4095).astype("<u2").tobytes())
    source = radiograph(ModalityLUTSequence=[item])
    ds = derive(source)
    assert ds.ModalityLUTSequence[0].LUTData == item.LUTData
    ds.file_meta = source.file_meta
    np.testing.assert_allclose(read_radiograph(ds, MAX_PIXELS).image, darker(source), atol=1e-3)


def test_spacing_that_measures_nonsense_is_left_out() -> None:
    ds = derive(radiograph(PixelSpacing=["0.000", "0.000"]))
    assert "PixelSpacing" not in ds


def test_dx_without_its_required_attributes_gets_what_can_be_known() -> None:
    source = radiograph(DX, photometric="MONOCHROME1")
    for keyword in (
        "PixelIntensityRelationship",
        "PixelIntensityRelationshipSign",
        "PresentationLUTShape",
        "ImageLaterality",
        "AnatomicRegionSequence",
        "DetectorType",
        "PresentationIntentType",
        "BurnedInAnnotation",
        "AcquisitionContextSequence",
    ):
        del source[keyword]
    ds = derive(source)
    assert ds.PresentationLUTShape == "INVERSE"
    assert ds.PixelIntensityRelationshipSign == 1
    assert ds.ImageLaterality == "U"
    assert ds.AnatomicRegionSequence[0].CodeValue == codes.CHEST.value
    assert ds.PresentationIntentType == "FOR PRESENTATION"


def test_other_classes_are_refused() -> None:
    source = radiograph(CR)
    image = read_radiograph(source, MAX_PIXELS)
    source.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with pytest.raises(Refused) as caught:
        derived_image(source, image, image.image, BONES)
    assert caught.value.code == "unsupported-class"


def _no_window(ds: Dataset) -> None:
    del ds.WindowCenter, ds.WindowWidth


def _private(ds: Dataset) -> None:
    ds.private_block(0x0011, "VENDOR", create=True).add_new(1, "LO", "x")


FAULTS: dict[str, Callable[[Dataset], Any]] = {
    "SeriesDescription": lambda ds: setattr(ds, "SeriesDescription", None),
    "PatientID": lambda ds: ds.pop("PatientID"),
    "Pixel Data has": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]),
    "Presentation LUT Shape": lambda ds: setattr(ds, "PresentationLUTShape", "INVERSE"),
    "needs a window": _no_window,
    "go together": lambda ds: ds.pop("WindowCenter"),
    "DERIVED": lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "", "X"]),
    "not this node": lambda ds: (setattr(ds, "Manufacturer", "x"), ds.ContributingEquipmentSequence.pop()),
    "private": _private,
    "High Bit": lambda ds: setattr(ds, "HighBit", 15),
    "none that this node makes": lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),
    "is no UID": lambda ds: setattr(ds.SourceImageSequence[0], "ReferencedSOPInstanceUID", "1.2/3"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_selfcheck_finds(fault: str) -> None:
    ds = derive(radiograph(DX))
    check(ds)
    FAULTS[fault](ds)
    with pytest.raises(OutputError, match=fault):
        check(ds)


def test_selfcheck_finds_a_value_that_is_too_long() -> None:
    ds = derive(radiograph())
    ds["SeriesDescription"]._value = "x" * 65
    with pytest.raises(OutputError, match="SeriesDescription"):
        check(ds)
