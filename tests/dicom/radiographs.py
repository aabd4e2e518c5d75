"""Small radiographs for tests, made here: two dark lungs beside a bright mediastinum, no patient."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

CR = ComputedRadiographyImageStorage
DX = DigitalXRayImageStorageForPresentation
DX_RAW = DigitalXRayImageStorageForProcessing
SC = SecondaryCaptureImageStorage

MAX_PIXELS = 1_000_000

NAMES: dict[str, tuple[list[str] | str, str]] = {
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东="),
    "unicode": ("ISO_IR 192", "Müller^Jürgen=王^小東=やまだ^たろう"),
}
"""Specific Character Set and a three-component name (PS3.5 Annexes H to J)."""


@cache
def chest(rows: int = 256, columns: int = 232, seed: int = 0) -> np.ndarray:
    """float64 (rows, columns) in [0, 1], bone-bright: body, lungs, mediastinum, ribs and some noise."""
    y, x = np.mgrid[0:rows, 0:columns] / np.array([rows, columns]).reshape(2, 1, 1)
    image = np.full((rows, columns), 0.7)
    for centre in (0.28, 0.72):
        image -= 0.45 * np.exp(-(((x - centre) / 0.13) ** 4 + ((y - 0.45) / 0.27) ** 4))
    image += 0.06 * np.sin(y * 60) * (np.abs(x - 0.5) > 0.12)
    image += 0.15 * np.exp(-(((x - 0.5) / 0.07) ** 4))
    image += np.random.default_rng(seed).normal(0, 0.01, image.shape)
    return np.clip(image, 0.02, 0.98)


def radiograph(
    sop_class: str = CR,
    *,
    photometric: str = "MONOCHROME2",
    bits: int = 12,
    signed: bool = False,
    rows: int = 256,
    columns: int = 232,
    window: tuple[float, float] | None = (-1, -1),
    charset: str | None = None,
    image: np.ndarray | None = None,
    **elements: Any,
) -> Dataset:
    """A valid CR, DX or SC data set with file meta; ``elements`` set (None: remove) attributes by keyword.

    ``window`` None leaves it out; by default it is the whole range of the stored values.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    name = "Test^Phantom"
    if charset is not None:
        ds.SpecificCharacterSet, name = NAMES[charset]
    ds.SOPClassUID, ds.SOPInstanceUID = UID(sop_class), UID("1.2.826.0.1.3680043.10.1.1")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1", "1.2.826.0.1.3680043.10.1.0"
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.ContentTime = "20260102", "101112", "20260102", "101213"
    ds.AcquisitionDate, ds.AcquisitionTime = "20260102", "101213"
    ds.AccessionNumber, ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "A1", "S1", 1, 3
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = name, "P1", "19700102", "F"
    ds.PatientAge, ds.ReferringPhysicianName = "056Y", None
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "Maker", "Modality", "1.0"
    ds.Modality = "DX" if "X-Ray" in UID(sop_class).name else "CR"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "PA", ["L", "F"]
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    if sop_class == SC:
        ds.ConversionType = "WSD"
        del ds.ViewPosition
    if ds.Modality == "DX":
        _dx(ds, photometric)
    else:
        ds.PixelSpacing = ["0.8", "0.8"]
    _pixels(ds, photometric, bits, signed, image if image is not None else chest(rows, columns))
    if window is not None and sop_class != DX_RAW:
        lowest = -(1 << bits - 1) if signed else 0
        ds.WindowCenter, ds.WindowWidth = (
            window if window != (-1, -1) else (lowest + (1 << bits - 1), 1 << bits)
        )
    for keyword, value in elements.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def _dx(ds: Dataset, photometric: str) -> None:
    ds.PresentationIntentType = "FOR PROCESSING" if ds.SOPClassUID == DX_RAW else "FOR PRESENTATION"
    ds.ImageLaterality = "U"
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "816094009", "SCT", "Chest"
    ds.AnatomicRegionSequence = [region]
    ds.AcquisitionContextSequence = []
    ds.DetectorType, ds.PositionerType = "DIRECT", "NONE"
    ds.ImagerPixelSpacing = ["0.8", "0.8"]
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "IDENTITY" if photometric == "MONOCHROME2" else "INVERSE"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"


def _pixels(ds: Dataset, photometric: str, bits: int, signed: bool, image: np.ndarray) -> None:
    shown = 1 - image if photometric == "MONOCHROME1" else image
    top = (1 << bits) - 1
    values = np.rint(shown * top).astype(np.int64) - (1 << bits - 1 if signed else 0)
    wide = bits > 8
    kind = ("i" if signed else "u") + ("2" if wide else "1")
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (16 if wide else 8), bits, bits - 1
    ds.PixelRepresentation = int(signed)
    data = values.astype(f"<{kind}").tobytes()
    ds.add_new("PixelData", "OW" if wide else "OB", data + bytes(len(data) % 2))


def part10(ds: Dataset) -> bytes:
    """``ds`` as a file in its own transfer syntax."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(ds: Dataset, path: Path) -> Path:
    """Write ``ds`` to ``path``."""
    path.write_bytes(part10(ds))
    return path
