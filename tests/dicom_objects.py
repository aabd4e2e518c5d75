"""Small DICOM objects for the network tests, made here: a gradient with noise, no patient."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

#: Transfer syntax UID to the DCMTK command that encodes it ({0} from, {1} to), or None for another way.
ENCODERS: dict[str, tuple[str, ...] | None] = {
    "1.2.840.10008.1.2.1": None,
    "1.2.840.10008.1.2": ("dcmconv", "+ti"),
    "1.2.840.10008.1.2.1.99": ("dcmconv", "+td"),
    "1.2.840.10008.1.2.4.57": ("dcmcjpeg", "+el"),
    "1.2.840.10008.1.2.4.70": ("dcmcjpeg", "+e1"),
    "1.2.840.10008.1.2.4.80": ("dcmcjpls", "+el"),
    "1.2.840.10008.1.2.4.81": ("dcmcjpls", "+en"),
    "1.2.840.10008.1.2.4.90": None,
    "1.2.840.10008.1.2.4.91": None,
    "1.2.840.10008.1.2.4.50": ("dcmcjpeg", "+eb"),
    "1.2.840.10008.1.2.4.51": ("dcmcjpeg", "+ee"),
    "1.2.840.10008.1.2.5": ("dcmcrle",),
}
LOSSY = {
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
}
EIGHT_BIT = {"1.2.840.10008.1.2.4.50"}


def radiograph(
    *,
    rows: int = 64,
    columns: int = 48,
    bits: int = 12,
    sop_class: str = ComputedRadiographyImageStorage,
    sop_instance_uid: str | None = None,
    study_instance_uid: str | None = None,
    seed: int = 0,
) -> Dataset:
    """A CR-like data set in Explicit VR Little Endian with file meta."""
    noise = np.random.default_rng(seed)
    ramp = np.linspace(0, 0.9 * 2**bits, rows * columns).reshape(rows, columns)
    pixels = (ramp + noise.integers(0, 2 ** (bits - 4), (rows, columns))).astype(
        np.uint16 if bits > 8 else np.uint8
    )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = sop_instance_uid or generate_uid()
    dataset.StudyDate = "20260101"
    dataset.StudyTime = "120000"
    dataset.AccessionNumber = ""
    dataset.Modality = "CR"
    dataset.PatientName = "Test^Phantom"
    dataset.PatientID = "PHANTOM"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.StudyInstanceUID = study_instance_uid or generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = 16 if bits > 8 else 8
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    return dataset


def write(folder: Path, dataset: Dataset, name: str = "object.dcm") -> Path:
    """Save as a Part 10 file."""
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_in(folder: Path, transfer_syntax: str, require_tool: Callable[[str], str]) -> Path:
    """A radiograph in any of the transfer syntaxes of ENCODERS, really encoded."""
    dataset = radiograph(bits=8 if transfer_syntax in EIGHT_BIT else 12)
    plain = write(folder, dataset, "plain.dcm")
    target = folder / f"{transfer_syntax}.dcm"
    command = ENCODERS[transfer_syntax]
    if command is not None:
        subprocess.run(
            [require_tool(command[0]), *command[1:], plain, target], check=True, capture_output=True
        )
    elif transfer_syntax == ExplicitVRLittleEndian:
        plain.rename(target)
    else:
        _jpeg2000(plain, target, lossy=transfer_syntax != JPEG2000Lossless)
    return target


def _jpeg2000(source: Path, target: Path, *, lossy: bool) -> None:
    """DCMTK has no JPEG 2000; GDCM has."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    assert writer.Write()
    if lossy:
        # A reversible code stream is a legal JPEG 2000 (.91) one too.
        import pydicom

        dataset = pydicom.dcmread(target)
        dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.91")
        dataset.save_as(target, enforce_file_format=True)


def data_set_bytes(path: Path) -> bytes:
    """The data set of a Part 10 file as it lies there, without preamble and file meta."""
    with path.open("rb") as file:
        read_preamble(file, force=False)
        read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        return file.read()
