"""The check that every output passes before anyone sees it.

It holds what this node is answerable for: its own values, the tags that decide how an image is shown, and the
references. Values that came with the source are the source's.
"""

from __future__ import annotations

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import validate_value

from pacs_node.dicom.carried import words
from pacs_node.dicom.identity import is_own_result
from pacs_node.dicom.uids import is_uid
from pacs_node.errors import OutputError

_OWN = words("""
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SeriesNumber InstanceNumber
    SeriesDescription Manufacturer ManufacturerModelName SoftwareVersions DeviceUID ContentQualification
""")

_IMAGE = words("""
    ImageType DerivationDescription DerivationCodeSequence SourceImageSequence ContributingEquipmentSequence
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit BurnedInAnnotation
    LossyImageCompression PixelData
""")

_DX = words("""
    PresentationIntentType ImageLaterality PixelIntensityRelationship PixelIntensityRelationshipSign
    PresentationLUTShape
""")

_SR = words("""
    CompletionFlag VerificationFlag ContentDate ContentTime ValueType ConceptNameCodeSequence ContentSequence
""")

_TYPE_1 = {
    ComputedRadiographyImageStorage: _IMAGE,
    SecondaryCaptureImageStorage: [*_IMAGE, "ConversionType"],
    DigitalXRayImageStorageForPresentation: [*_IMAGE, *_DX],
    DigitalXRayImageStorageForProcessing: [*_IMAGE, *_DX],
    ComprehensiveSRStorage: _SR,
    Comprehensive3DSRStorage: _SR,
}

_TYPE_2 = words("""
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber
""")

_TEXT = {"LO", "SH", "ST", "LT", "UT", "CS", "UI", "IS", "DS", "DA", "TM", "DT"}


def check(ds: Dataset) -> None:
    """Raise OutputError, with everything that is wrong, unless ``ds`` may be sent."""
    faults = [*_presence(ds), *_values(ds), *_privacy(ds)]
    if not faults:
        faults = [*_report(ds)] if "ContentSequence" in ds else [*_pixels(ds), *_presentation(ds)]
    if faults:
        raise OutputError("the output fails its own check: " + "; ".join(faults))


def _presence(ds: Dataset) -> list[str]:
    if ds.get("SOPClassUID") not in _TYPE_1:
        return [f"SOP Class {ds.get('SOPClassUID')} is none that this node makes"]
    required = [*_OWN, *_TYPE_1[ds.SOPClassUID]]
    faults = [f"{k} is missing or empty" for k in required if k not in ds or ds[k].is_empty]
    faults += [f"{k} is missing" for k in _TYPE_2 if k not in ds]
    if not faults and not is_own_result(ds):
        faults.append("the equipment is not this node's")
    return faults


def _values(ds: Dataset) -> list[str]:
    """The values that the node wrote itself fit their value representations (PS3.5 table 6.2-1)."""
    faults = []
    for keyword in [*_OWN, "ImageType", "DerivationDescription", "WindowCenter", "WindowWidth"]:
        if keyword not in ds:
            continue
        element = ds[keyword]
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            if element.VR not in _TEXT:
                continue
            try:
                validate_value(element.VR, str(value), config.RAISE)
            except ValueError as error:
                faults.append(f"{keyword}: {error}")
    for element in ds.iterall():
        if element.VR == "UI":
            for uid in element.value if element.VM > 1 else [element.value]:
                if uid and not is_uid(str(uid)):
                    faults.append(f"{element.keyword} is no UID")
    return faults


def _privacy(ds: Dataset) -> list[str]:
    return [f"private element {e.tag}" for e in ds.iterall() if e.tag.is_private]


def _pixels(ds: Dataset) -> list[str]:
    faults = []
    expected = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    if len(ds.PixelData) != expected + expected % 2:
        faults.append(f"Pixel Data has {len(ds.PixelData)} bytes, not {expected + expected % 2}")
    if not ds.BitsStored <= ds.BitsAllocated or ds.HighBit != ds.BitsStored - 1:
        faults.append("Bits Allocated, Bits Stored and High Bit do not go together")
    if ds.ImageType[0] != "DERIVED":
        faults.append("Image Type is not DERIVED")
    return faults


def _presentation(ds: Dataset) -> list[str]:
    """Polarity and window say one thing only (PS3.3 C.8.11.3.1.2, C.11.6.1.2)."""
    faults = []
    shape = ds.get("PresentationLUTShape")
    if shape and (shape == "INVERSE") != (ds.PhotometricInterpretation == "MONOCHROME1"):
        faults.append(f"Presentation LUT Shape {shape} contradicts {ds.PhotometricInterpretation}")
    windowed = "WindowWidth" in ds or "VOILUTSequence" in ds
    if ds.SOPClassUID == DigitalXRayImageStorageForPresentation and not windowed:
        faults.append("a DX image for presentation needs a window or a VOI LUT")
    if ds.SOPClassUID == DigitalXRayImageStorageForProcessing and windowed:
        faults.append("a DX image for processing must not have a window")
    if ("WindowWidth" in ds) != ("WindowCenter" in ds):
        faults.append("Window Center and Window Width go together")
    return faults


def _report(ds: Dataset) -> list[str]:
    """Every object that the content refers to is in the evidence (PS3.3 C.17.2)."""
    evidence: set[str] = set()
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in ds.get(keyword) or []:
            for series in study.ReferencedSeriesSequence:
                evidence |= {str(i.ReferencedSOPInstanceUID) for i in series.ReferencedSOPSequence}
    referred: set[str] = set()
    pending = list(ds.ContentSequence)
    while pending:
        item = pending.pop()
        pending.extend(item.get("ContentSequence") or [])
        referred |= {str(i.ReferencedSOPInstanceUID) for i in item.get("ReferencedSOPSequence") or []}
    return [f"{uid} is referred to but not in the evidence" for uid in sorted(referred - evidence)]
