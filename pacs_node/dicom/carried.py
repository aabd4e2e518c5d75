"""What an output carries over from its source: patient, study, order, acquisition and geometry, by module.

Carried is what is named here and nothing else: no private elements, no icon, no signatures, no overlays or
annotations (they belong to the source), no equipment (that is the node's own) and no comments. Values go
over as they came, byte for byte, with their Specific Character Set: the names in the PACS stay the same
names.
"""

from __future__ import annotations

import re
from collections.abc import MutableSequence
from copy import deepcopy
from datetime import datetime

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import PersonName

from pacs_node.dicom.derivation import Derivation

Charset = str | MutableSequence[str] | None


def words(text: str) -> list[str]:
    """The keywords in a table that is written as text."""
    return text.split()


# Group 0010 (patient) and group 0012 (trial subject, de-identification) are carried as wholes.
_PATIENT_GROUPS = (0x0010, 0x0012)

_STUDY = words("""
    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName ReferringPhysicianIdentificationSequence
    ConsultingPhysicianName StudyID AccessionNumber IssuerOfAccessionNumberSequence StudyDescription
    PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    RequestingService ReferencedStudySequence ProcedureCodeSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence TimezoneOffsetFromUTC InstitutionName InstitutionAddress
    InstitutionCodeSequence
""")

_ORDER = ["RequestAttributesSequence"]

_FRAME = ["FrameOfReferenceUID", "PositionReferenceIndicator"]

_ACQUISITION = words("""
    BodyPartExamined ProtocolName PatientPosition ViewPosition ViewCodeSequence PatientOrientation
    Laterality ImageLaterality AnatomicRegionSequence PrimaryAnatomicStructureSequence
    AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionNumber AcquisitionContextSequence
    ContrastBolusAgent KVP ExposureTime XRayTubeCurrent Exposure ExposureInuAs ExposureTimeInuS
    XRayTubeCurrentInuA DistanceSourceToDetector DistanceSourceToPatient
    EstimatedRadiographicMagnificationFactor ImageAndFluoroscopyAreaDoseProduct EntranceDose
    EntranceDoseInmGy ExposureIndex TargetExposureIndex DeviationIndex Sensitivity RelativeXRayExposure Grid
    FilterType FilterMaterial FocalSpots AnodeTargetMaterial CollimatorShape CollimatorLeftVerticalEdge
    CollimatorRightVerticalEdge CollimatorUpperHorizontalEdge CollimatorLowerHorizontalEdge
    CenterOfCircularCollimator RadiusOfCircularCollimator VerticesOfThePolygonalCollimator
    ShutterShape ShutterLeftVerticalEdge ShutterRightVerticalEdge ShutterUpperHorizontalEdge
    ShutterLowerHorizontalEdge CenterOfCircularShutter RadiusOfCircularShutter VerticesOfThePolygonalShutter
    ShutterPresentationValue
    CassetteOrientation CassetteSize PlateType PhosphorType
    PositionerType PositionerPrimaryAngle PositionerSecondaryAngle DetectorPrimaryAngle DetectorSecondaryAngle
    DetectorType DetectorConfiguration DetectorDescription DetectorConditionsNominalFlag FieldOfViewShape
    FieldOfViewDimensions FieldOfViewOrigin FieldOfViewRotation FieldOfViewHorizontalFlip
    DetectorActiveShape DetectorActiveDimensions DetectorElementPhysicalSize DetectorElementSpacing
""")

_SPACING = words("""
    PixelSpacing ImagerPixelSpacing PixelSpacingCalibrationType PixelSpacingCalibrationDescription
    NominalScannedPixelSpacing PixelAspectRatio
""")

_DISPLAY = words("""
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType
    ModalityLUTSequence WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction VOILUTSequence
    PresentationLUTShape PixelIntensityRelationship PixelIntensityRelationshipSign
    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod
    BurnedInAnnotation RecognizableVisualFeatures
""")

IDENTITY = ["SpecificCharacterSet", *_STUDY, *_ORDER]
IMAGE = [*_FRAME, *_ACQUISITION, *_SPACING, *_DISPLAY]

TEXT = frozenset({"PN", "SH", "LO", "ST", "LT", "UT", "UC"})
"""Value representations whose characters depend on Specific Character Set."""

_WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence")

_TYPE_2 = words("""
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber
""")


def carry(target: Dataset, source: Dataset, keywords: list[str]) -> None:
    """Copy the elements of ``keywords`` that the source has, without anything private inside."""
    for keyword in keywords:
        if keyword in source:
            _copy(target, source, source.get_item(keyword).tag)


def carry_identity(target: Dataset, source: Dataset) -> None:
    """Patient, study and order of the source; what must be there but is not becomes empty (type 2)."""
    for tag in source.keys():  # noqa: SIM118  (iterating a Dataset gives elements)
        if tag.group in _PATIENT_GROUPS:
            _copy(target, source, tag)
    carry(target, source, IDENTITY)
    for keyword in _TYPE_2:
        if keyword not in target:
            setattr(target, keyword, None)


def is_plain(value: bytes | None) -> bool:
    """Whether text is ASCII without the escapes of ISO 2022: the same in every Specific Character Set."""
    return not value or (value.isascii() and b"\x1b" not in value)


def _copy(target: Dataset, source: Dataset, tag: BaseTag, charset: Charset = None) -> None:
    """Copy one element. Text that is not plain ASCII goes over as its bytes.

    Decoding could lose what does not fit the Specific Character Set, and the PACS would see another name.
    """
    charset = source.get("SpecificCharacterSet") or charset
    raw: object = source.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.value and not is_plain(raw.value):
        vr = raw.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        if vr in TEXT:
            value = PersonName(raw.value, convert_encodings(charset)) if vr == "PN" else raw.value
            target[tag] = DataElement(tag, vr, value, already_converted=True)
            return
    element = source[tag]
    if element.VR != "SQ":
        target[tag] = deepcopy(element)
        return
    items = []
    for item in element.value:
        copied = Dataset()
        for inner in item.keys():  # noqa: SIM118  (iterating a Dataset gives elements)
            if not inner.is_private:
                _copy(copied, item, inner, charset)
        items.append(copied)
    target[tag] = DataElement(tag, "SQ", Sequence(items))


def number(source: Dataset, keyword: str, otherwise: int) -> int:
    """A whole number of the source, or ``otherwise`` where it has none that fits an IS."""
    try:
        value = int(source.get(keyword))
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return value if 0 <= value < 1 << 31 else otherwise


def drop_window(target: Dataset) -> None:
    """Remove every VOI transformation."""
    for keyword in _WINDOW:
        if keyword in target:
            del target[keyword]


def drop_bad_spacing(target: Dataset) -> None:
    """Remove spacings that are no pair of positive numbers: a viewer would measure nonsense with them."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if keyword in target and spacing(target, keyword) is None:
            del target[keyword]


def spacing(ds: Dataset, keyword: str) -> tuple[float, float] | None:
    """Row and column spacing in mm, or None if the header has no pair of positive numbers for it."""
    try:
        row, column = (float(v) for v in ds.get(keyword) or ())
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < 100 and 0 < column < 100 else None


def set_content_date(target: Dataset, source: Dataset, created: datetime | None) -> None:
    """Content Date and Time: of the work if its time is given, otherwise of the source (so a re-run is the
    same).
    """
    if created is not None:
        target.ContentDate, target.ContentTime = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
        target.InstanceCreationDate, target.InstanceCreationTime = target.ContentDate, target.ContentTime
        return
    for prefix in ("Content", "Acquisition", "Series", "Study"):
        day, time = (str(source.get(f"{prefix}{part}") or "") for part in ("Date", "Time"))
        if re.fullmatch(r"[0-9]{8}", day):
            target.ContentDate = day
            target.ContentTime = time if re.fullmatch(r"[0-9]{6}(\.[0-9]{1,6})?", time) else "000000"
            return


def set_laterality(ds: Dataset) -> None:
    """Laterality is for paired body parts, which a chest is not (type 2C); empty says that nobody knows."""
    if ds.get("BodyPartExamined") == "CHEST":
        if "Laterality" in ds and not ds.Laterality:
            del ds["Laterality"]
    elif "Laterality" not in ds:
        ds.Laterality = None


def modality(source: Dataset, otherwise: str) -> str:
    """Modality of the source, or ``otherwise`` where it has none that is a code string."""
    value = source.get("Modality")
    return value if isinstance(value, str) and re.fullmatch(r"[A-Z0-9_]{2,16}", value) else otherwise


_SERIES_BASE = 9_000_000
_PLACES = {"bone_suppression": 1, "restoration": 2, "anomaly": 3}
_REPORT_PLACE = 9


def series_number(source: Dataset, derivation: Derivation | None) -> int:
    """Series Number of a result: the source's, tenfold, above nine million, so that results stand last in a
    study.

    One number for each source series and task (the report: 9), out of the way of what modalities count.
    """
    place = _REPORT_PLACE if derivation is None else _PLACES[derivation.task]
    return _SERIES_BASE + number(source, "SeriesNumber", 0) % 100_000 * 10 + place
