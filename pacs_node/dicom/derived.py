"""A derived image: the source's own kind of object with new pixels (PS3.3 C.7.6.1, C.8.1.2, C.8.11,
C.12.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from pacs_node import __version__
from pacs_node.dicom import carried, codes, identity
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, Derivation, ascii_text
from pacs_node.dicom.pixels import Radiograph
from pacs_node.dicom.selfcheck import check
from pacs_node.errors import Refused
from pacs_node.tasks import Task

SUPPORTED = {
    ComputedRadiographyImageStorage: "CR",
    DigitalXRayImageStorageForPresentation: "DX",
    DigitalXRayImageStorageForProcessing: "DX",
    SecondaryCaptureImageStorage: "OT",
}
"""SOP classes that a derived image can have, each with the Modality of a source that names none."""

IMAGE_TYPE_VALUE_4 = {Task.BONE_SUPPRESSION: "BONE_SUPPRESSED", Task.RESTORATION: "RESTORED"}
"""Value 4 of Image Type; value 3 is empty, as DX asks (PS3.3 C.8.11.3.1.1)."""

_LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}
_DX = (DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing)


def derived_image(
    source: Dataset, radiograph: Radiograph, image: NDArray[np.float32], derivation: Derivation
) -> Dataset:
    """The object that holds ``image``, shown by a viewer as its source is.

    ``image`` is float32 (rows, columns) in [0, 1], bone-bright, of the same matrix as ``radiograph.image``.
    Raises Refused ``unsupported-class`` for a source of another class, OutputError if the result fails its
    own check.
    """
    if source.SOPClassUID not in SUPPORTED:
        raise Refused("unsupported-class", f"no derived image is made of a {source.SOPClassUID.name}")
    ds = Dataset()
    carried.carry_identity(ds, source)
    carried.carry(ds, source, carried.IMAGE)
    carried.drop_bad_spacing(ds)
    ds.SOPClassUID = source.SOPClassUID
    ds.SOPInstanceUID = derivation.instance_uid(source)
    ds.SeriesInstanceUID = derivation.series_uid(source)
    ds.Modality = carried.modality(source, SUPPORTED[source.SOPClassUID])
    ds.SeriesNumber = carried.series_number(source, derivation)
    ds.SeriesDescription = f"{derivation.title} - {NOT_FOR_DIAGNOSIS}"
    ds.InstanceNumber = carried.number(source, "InstanceNumber", 1)
    ds.ImageType = ["DERIVED", "SECONDARY", "", IMAGE_TYPE_VALUE_4[derivation.task]]
    carried.set_content_date(ds, source, derivation.created)
    describe(ds, source, derivation)
    ds.PatientOrientation = source.get("PatientOrientation") or None
    if ds.get("BurnedInAnnotation") != "YES":
        ds.BurnedInAnnotation = "NO"
    _set_window(ds, source, radiograph)
    _set_lossy(ds, source)
    _MODULES[source.SOPClassUID](ds, source)
    set_pixels(ds, radiograph.to_stored(image))
    codes.identify_scheme(ds, list(source.get("CodingSchemeIdentificationSequence") or []))
    check(ds)
    return ds


def describe(ds: Dataset, source: Dataset, derivation: Derivation, spatial: str = "YES") -> None:
    """Write equipment, qualification and where ``ds`` comes from (PS3.3 C.7.6.1.1.3, C.12.4, C.12.1.1.5)."""
    identity.set_general_equipment(ds, derivation)
    ds.ContributingEquipmentSequence = identity.contributing_equipment(source, derivation)
    ds.ContentQualification = derivation.qualification
    earlier = ascii_text(str(source.get("DerivationDescription") or ""))
    text = f"{derivation.in_words()}; pacs-node {__version__}; {NOT_FOR_DIAGNOSIS}"
    if earlier:
        text += f". Of the source: {earlier}"
    ds.DerivationDescription = text[:1024]
    ds.DerivationCodeSequence = [codes.item(codes.DERIVATION[derivation.task])]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [codes.item(codes.SOURCE_IMAGE)]
    reference.SpatialLocationsPreserved = spatial
    ds.SourceImageSequence = [reference]


def set_pixels(ds: Dataset, values: NDArray[Any]) -> None:
    """Write Pixel Data, padded to an even length, with the value representation that Bits Allocated asks
    for.
    """
    data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    ds.add_new("PixelData", "OB" if values.dtype.itemsize == 1 else "OW", data + bytes(len(data) % 2))


def _set_window(ds: Dataset, source: Dataset, radiograph: Radiograph) -> None:
    """The source's own window fits, because stored values keep their scale; where it has none, the fitted
    one.
    """
    if source.SOPClassUID == DigitalXRayImageStorageForProcessing:
        carried.drop_window(ds)  # VOI transformations are forbidden in it (PS3.3 A.26.4.1)
    elif radiograph.fitted_window is not None:
        carried.drop_window(ds)
        centre, width = radiograph.fitted_window.centre_and_width
        ds.WindowCenter, ds.WindowWidth = f"{centre:.8g}", f"{width:.8g}"


def _set_lossy(ds: Dataset, source: Dataset) -> None:
    """Lossy once is lossy for good (PS3.3 C.7.6.1.1.5)."""
    method = _LOSSY_SYNTAXES.get(str(source.file_meta.TransferSyntaxUID))
    if ds.get("LossyImageCompression") == "01" or method is None:
        ds.LossyImageCompression = ds.get("LossyImageCompression") or "00"
        return
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", method


def _cr(ds: Dataset, source: Dataset) -> None:
    """CR Series and CR Image modules (PS3.3 C.8.1.1, C.8.1.2)."""
    for keyword in ("BodyPartExamined", "ViewPosition"):
        if keyword not in ds:
            setattr(ds, keyword, None)
    carried.set_laterality(ds)


def _sc(ds: Dataset, source: Dataset) -> None:
    """SC Equipment module (PS3.3 C.8.6.1)."""
    ds.ConversionType = source.get("ConversionType") or "WSD"
    carried.set_laterality(ds)


def _dx(ds: Dataset, source: Dataset) -> None:
    """DX Series, Anatomy Imaged, Image, Detector and Positioning modules (PS3.3 C.8.11.1 to C.8.11.5)."""
    presentation = source.SOPClassUID == DigitalXRayImageStorageForPresentation
    ds.PresentationIntentType = "FOR PRESENTATION" if presentation else "FOR PROCESSING"
    # Image Laterality takes Laterality's place in DX; a chest is unpaired.
    ds.ImageLaterality = ds.get("ImageLaterality") or ds.get("Laterality") or "U"
    if "Laterality" in ds:
        del ds["Laterality"]
    if not ds.get("AnatomicRegionSequence"):
        known = ds.get("BodyPartExamined") in ("CHEST", "THORAX")
        ds.AnatomicRegionSequence = [codes.item(codes.CHEST)] if known else []
    for keyword in ("DetectorType", "PositionerType"):
        if keyword not in ds:
            setattr(ds, keyword, None)
    if "AcquisitionContextSequence" not in ds:
        ds.AcquisitionContextSequence = []
    inverse = ds.PhotometricInterpretation == "MONOCHROME1"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    if not ds.get("PixelIntensityRelationship"):
        ds.PixelIntensityRelationship = "LOG"
    if not ds.get("PixelIntensityRelationshipSign"):
        ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    if "ModalityLUTSequence" not in ds:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    if "ImagerPixelSpacing" not in ds and "PixelSpacing" in ds:
        ds.ImagerPixelSpacing = ds.PixelSpacing


_MODULES = {
    ComputedRadiographyImageStorage: _cr,
    SecondaryCaptureImageStorage: _sc,
    DigitalXRayImageStorageForPresentation: _dx,
    DigitalXRayImageStorageForProcessing: _dx,
}
