"""The phantom as a modality would send it: valid Digital X-Ray and Computed Radiography objects.

Everything is derived from the seed and the options, UIDs included: the same call gives the same bytes.
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pacs_node.errors import PacsNodeError
from pacs_node.phantom.chest import Phantom
from pacs_node.phantom.shapes import Array

_NAMESPACE = uuid.UUID("5c0f6f0e-6d0f-4a30-9d0a-0c6a7a1d8f11")

PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)
"""Transfer syntaxes that `Acquisition.transfer_syntax` may name; all lossless."""

NAMES: dict[str, tuple[list[str], str]] = {
    "latin": (["ISO_IR 100"], "Phantom^Chést"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "chinese": (["GB18030"], "Wang^XiaoDong=王^小东"),
    "utf8": (["ISO_IR 192"], "Wang^XiaoDong=王^小東"),
}
"""Specific Character Set and Patient's Name by option: the examples of PS3.5 Annexes H to J, a plain one."""


@dataclass(frozen=True)
class Acquisition:
    """How one synthetic image is taken and encoded.

    ``bits`` is Bits Stored, 8 to 16; ``photometric`` "MONOCHROME1" or "MONOCHROME2"; ``rows`` and ``columns``
    cut the square phantom (400 mm over the larger of the two). ``name`` is a key of `NAMES`.
    """

    sop_class: str = DigitalXRayImageStorageForPresentation
    photometric: str = "MONOCHROME2"
    bits: int = 12
    transfer_syntax: str = ExplicitVRLittleEndian
    view: str = "PA"
    sex: str = "M"
    age_years: int = 55
    nodules: int = 0
    rows: int = 1024
    columns: int = 1024
    name: str = "latin"

    @property
    def modality(self) -> str:
        """Modality (0008,0060)."""
        return "CR" if self.sop_class == ComputedRadiographyImageStorage else "DX"


DEMO = (
    Acquisition(nodules=1),
    Acquisition(ComputedRadiographyImageStorage, "MONOCHROME1", 10),
)
"""The study of the demonstration: a DX image with a nodule and a CR image, one patient."""


def uid(*parts: object) -> UID:
    """A UID of the form 2.25.<UUID as a number> (PS3.5 B.2), always the same for the same parts."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, parts))).int}")


def study(seed: int = 1, acquisitions: tuple[Acquisition, ...] = DEMO, **changes: object) -> list[Dataset]:
    """One patient's study: a Dataset with file meta information for each acquisition, each in its own series.

    ``changes`` replaces fields of every acquisition, e.g. ``study(7, name="korean", rows=512, columns=512)``.
    Images after the first carry the same patient's name, but their anatomy is drawn anew.
    Raises ValueError for options out of range, PacsNodeError where a compressed encoding fails.
    """
    return [
        image(seed, number, replace(each, **changes))  # type: ignore[arg-type]  # a wrong field is a TypeError
        for number, each in enumerate(acquisitions, 1)
    ]


def image(seed: int, number: int, how: Acquisition) -> Dataset:
    """Image ``number`` (from 1) of the study of this seed, as a Dataset ready for ``save_as`` or C-STORE."""
    if how.name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, not {how.name!r}")
    if how.photometric not in ("MONOCHROME1", "MONOCHROME2") or not 8 <= how.bits <= 16:
        raise ValueError(f"cannot encode {how.photometric} with {how.bits} bits")
    if how.transfer_syntax not in (*PLAIN, *COMPRESSED):
        raise ValueError(f"cannot encode transfer syntax {UID(how.transfer_syntax).name}")
    ds = Dataset()
    charset, name = NAMES[how.name]
    ds.SpecificCharacterSet = charset if len(charset) > 1 else charset[0]
    _patient_and_study(ds, seed, name, how)
    _series_and_equipment(ds, seed, number, how)
    _acquisition(ds, how)
    _pixels(ds, seed + 1000 * (number - 1), how)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = UID(
        how.transfer_syntax if how.transfer_syntax in PLAIN else ExplicitVRLittleEndian
    )
    meta.ImplementationClassUID = uid("implementation")
    ds.file_meta = meta
    return transcode(ds, how.transfer_syntax) if how.transfer_syntax in COMPRESSED else ds


def _patient_and_study(ds: Dataset, seed: int, name: str, how: Acquisition) -> None:
    ds.PatientName = name
    ds.PatientID = f"PHANTOM-{seed:04d}"
    ds.PatientBirthDate = f"{2026 - how.age_years}0101"
    ds.PatientSex = how.sex
    ds.PatientAge = f"{how.age_years:03d}Y"
    ds.StudyInstanceUID = uid("study", seed)
    ds.StudyDate, ds.StudyTime = "20260302", "093000"
    ds.StudyID = str(seed)
    ds.AccessionNumber = f"A{seed:07d}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Synthetic chest (phantom)"


def _series_and_equipment(ds: Dataset, seed: int, number: int, how: Acquisition) -> None:
    ds.SOPClassUID = UID(how.sop_class)
    ds.SOPInstanceUID = uid("image", seed, number, how)
    ds.SeriesInstanceUID = uid("series", seed, number, how)
    ds.Modality = how.modality
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = number, 1, number
    ds.SeriesDate, ds.SeriesTime = ds.StudyDate, f"0930{number:02d}"
    ds.AcquisitionDate, ds.AcquisitionTime = ds.SeriesDate, ds.SeriesTime
    ds.ContentDate, ds.ContentTime = ds.SeriesDate, ds.SeriesTime
    ds.SeriesDescription = f"Chest {how.view} (synthetic)"
    ds.ProtocolName = f"Chest {how.view}"
    ds.Manufacturer = "Synthetic phantom"
    ds.ManufacturerModelName = f"Analytic chest {how.modality}"
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = "1"
    ds.InstitutionName = "Synthetic data, no patient"
    if how.modality == "DX":
        processing = how.sop_class == DigitalXRayImageStorageForProcessing
        ds.PresentationIntentType = "FOR PROCESSING" if processing else "FOR PRESENTATION"


def _acquisition(ds: Dataset, how: Acquisition) -> None:
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = how.view
    ds.PatientOrientation = ["L", "F"]
    ds.KVP = "120" if how.view == "PA" else "95"
    ds.DistanceSourceToDetector = "1800" if how.view == "PA" else "1100"
    spacing = 400 / max(how.rows, how.columns)
    ds.ImagerPixelSpacing = [f"{spacing:.6f}"] * 2
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""] if how.modality == "DX" else ["ORIGINAL", "PRIMARY"]
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    if how.modality == "CR":
        return
    ds.ImageLaterality = "U"
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
    ds.AnatomicRegionSequence = [region]
    ds.AcquisitionContextSequence = []
    ds.DetectorType = "SCINTILLATOR"
    ds.DetectorConfiguration = "AREA"
    ds.DetectorID = "PHANTOM"
    ds.PositionerType = "NONE"
    view = Dataset()
    codes = {"PA": ("272479007", "postero-anterior"), "AP": ("399348003", "antero-posterior")}  # CID 4010
    code, meaning = codes[how.view]
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = code, "SCT", meaning
    view.ViewModifierCodeSequence = []
    ds.ViewCodeSequence = [view]


@lru_cache(maxsize=8)
def _rendered(seed: int, view: str, sex: str, age_years: int, nodules: int, size: int) -> Array:
    radiograph = Phantom(seed, view, sex, age_years, nodules).render(size).radiograph
    radiograph.setflags(write=False)
    return radiograph


def _pixels(ds: Dataset, seed: int, how: Acquisition) -> None:
    """Image Pixel, VOI and the attributes that say how values and brightness go together."""
    size = max(how.rows, how.columns)
    shown = _rendered(seed, how.view, how.sex, how.age_years, how.nodules, size)
    left = (size - how.columns) // 2
    shown = shown[: how.rows, left : left + how.columns]
    largest = 2**how.bits - 1
    low, high = round(0.05 * largest), round(0.95 * largest)  # detector values leave room outside the window
    bright = how.photometric == "MONOCHROME2"
    stored = low + np.rint((shown if bright else 1 - shown) * (high - low))
    wide = how.bits > 8
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = how.photometric
    ds.Rows, ds.Columns = shown.shape
    ds.BitsAllocated = 16 if wide else 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = how.bits, how.bits - 1, 0
    ds.PixelData = np.ascontiguousarray(stored, "<u2" if wide else "u1").tobytes()
    ds["PixelData"].VR = "OW" if wide else "OB"
    if how.modality == "DX":
        ds.PixelIntensityRelationship = "LOG"
        ds.PixelIntensityRelationshipSign = -1 if bright else 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
        ds.PresentationLUTShape = "IDENTITY" if bright else "INVERSE"
    if how.sop_class != DigitalXRayImageStorageForProcessing:
        ds.WindowCenter, ds.WindowWidth = f"{(low + high + 1) / 2:g}", f"{high - low + 1}"


def transcode(ds: Dataset, transfer_syntax: str) -> Dataset:
    """The same object in a compressed transfer syntax (one of `COMPRESSED`), through GDCM, losslessly."""
    import gdcm

    kinds: dict[str, int] = {
        JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
        JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
        RLELossless: gdcm.TransferSyntax.RLELossless,
    }
    with tempfile.TemporaryDirectory(prefix="pacs-node-phantom-") as folder:
        source, target = Path(folder) / "in.dcm", Path(folder) / "out.dcm"
        ds.save_as(source, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(kinds[transfer_syntax]))
        if not reader.Read():
            raise PacsNodeError(
                f"GDCM cannot read the phantom image that it should encode as {transfer_syntax}"
            )
        change.SetInput(reader.GetImage())
        if not change.Change():
            raise PacsNodeError(f"GDCM cannot encode the phantom image as {UID(transfer_syntax).name}")
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not writer.Write():
            raise PacsNodeError(f"GDCM cannot write the phantom image as {UID(transfer_syntax).name}")
        encoded = dcmread(target)
    out = Dataset(ds)
    out.PixelData = encoded.PixelData
    out["PixelData"].VR = "OB"
    out["PixelData"].is_undefined_length = True
    out.file_meta = FileMetaDataset(ds.file_meta)
    out.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return out
