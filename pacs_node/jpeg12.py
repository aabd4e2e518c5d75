"""12-bit lossy JPEG (JPEG Extended, 1.2.840.10008.1.2.4.51), which pydicom's own decoders leave out.

Through GDCM's reader of whole files the values are those of DCMTK, bit for bit; handed the bare frame, as
pydicom would,
GDCM reports success and returns noise.
"""

from __future__ import annotations

from pathlib import Path

import gdcm


def decode(path: Path) -> bytes:
    """The stored values of a DICOM file of one frame in that transfer syntax: native, little endian, 16
    bits each.

    Raises ValueError if GDCM cannot read or decode it.
    """
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("GDCM does not read it")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise ValueError("GDCM does not decode it")
    return bytes(change.GetOutput().GetBuffer().encode("utf-8", "surrogateescape"))
