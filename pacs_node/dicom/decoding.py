"""From a data set to its stored pixel values: every header value is checked before anything is allocated."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, JPEGExtended12Bit, RLELossless

from pacs_node import jpeg12
from pacs_node.dicom.codestream import inspect
from pacs_node.errors import Refused

MIN_SIDE = 64
"""Rows and columns below which an image shows no chest (and models and viewers have nothing to work on)."""

MAX_ELONGATION = 4
"""A side this many times longer than the other is no frontal chest, and padding it to a square would be
costly.
"""

_DEVICE = "Correct it in the device that sends it"
_AGAIN = "Send the object again, if possible uncompressed"

# GDCM prints what it dislikes to stderr and pydicom logs a traceback for each decoder that fails; the refusal
# below says it once. (libjpeg still prints one line for a damaged frame: silencing stderr itself would lose
# the lines of other threads.)
logging.getLogger("pydicom.pixels").setLevel(logging.CRITICAL)
for _off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
    _off()


@dataclass(frozen=True)
class Stored:
    """Stored pixel values, (rows, columns), in the smallest integer type of Bits Allocated and sign."""

    values: np.ndarray[Any, Any]
    bits: int
    signed: bool

    @property
    def lowest(self) -> int:
        """The smallest value that Bits Stored and Pixel Representation allow."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest such value."""
        return (1 << (self.bits - (1 if self.signed else 0))) - 1


def decode(ds: Dataset, max_pixels: int) -> Stored:
    """Decode the one monochrome frame of ``ds``.

    Raises Refused: ``no-pixel-data``, ``missing-attribute``, ``colour``, ``multi-frame``, ``too-small``,
    ``too-large``, ``odd-shape``, ``bad-bits``, ``truncated``, ``size-mismatch``, ``transfer-syntax``,
    ``does-not-decode``, ``bits-exceeded``.
    """
    _check_kind(ds)
    rows, columns = _check_size(ds, max_pixels)
    allocated, bits, signed = _check_bits(ds)
    syntax = _decodable_syntax(ds)
    if syntax.is_compressed and not syntax.is_deflated:
        _check_frame(ds, rows, columns, syntax.name)
    else:
        _check_length(ds, rows * columns * allocated // 8)
    return _check_values(ds, _decoded(ds, syntax.name, (rows, columns)), allocated, bits, signed)


def _decodable_syntax(ds: Dataset) -> UID:
    syntax = ds.file_meta.get("TransferSyntaxUID") if hasattr(ds, "file_meta") else None
    if not isinstance(syntax, UID):
        raise Refused("transfer-syntax", "the object does not say its Transfer Syntax UID", _DEVICE)
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise Refused("transfer-syntax", f"there is no decoder for {ascii(syntax.name)[:80]}", _AGAIN)
    return syntax


def _integer(ds: Dataset, keyword: str) -> int:
    value = ds.get(keyword)
    if value is None or value == "":
        raise Refused("missing-attribute", f"the header has no {keyword}", _DEVICE)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise Refused("missing-attribute", f"{keyword} is not one number", _DEVICE) from error


def _check_kind(ds: Dataset) -> None:
    if not isinstance(ds.get("PixelData"), bytes) or not ds.PixelData:
        raise Refused("no-pixel-data", "the object has no Pixel Data", "Send an image with pixels")
    photometric = str(ds.get("PhotometricInterpretation") or "")
    if not photometric:
        raise Refused("missing-attribute", "the header has no PhotometricInterpretation", _DEVICE)
    samples = _integer(ds, "SamplesPerPixel")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused(
            "colour",
            f"{ascii(photometric)[:40]} with {samples} samples per pixel is no radiograph",
            "Send the MONOCHROME1 or MONOCHROME2 original",
        )
    frames = _integer(ds, "NumberOfFrames") if ds.get("NumberOfFrames") not in (None, "") else 1
    if frames != 1:
        raise Refused("multi-frame", f"the object has {frames} frames", "Send single-frame radiographs")


def _check_size(ds: Dataset, max_pixels: int) -> tuple[int, int]:
    rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
    if min(rows, columns) < MIN_SIDE:
        raise Refused(
            "too-small", f"{columns} x {rows} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed", _DEVICE
        )
    if rows * columns > max_pixels:
        raise Refused(
            "too-large",
            f"{columns} x {rows} pixels are more than the limit of {max_pixels}",
            "Raise limits.max_pixels if such images are expected",
        )
    if max(rows, columns) > MAX_ELONGATION * min(rows, columns):
        raise Refused("odd-shape", f"{columns} x {rows} pixels is too elongated for a chest", _DEVICE)
    return rows, columns


def _check_bits(ds: Dataset) -> tuple[int, int, bool]:
    """Bits Allocated, Bits Stored and whether signed (PS3.5 8.1.1: High Bit is Bits Stored less one)."""
    allocated, bits, high = (_integer(ds, k) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    sign = _integer(ds, "PixelRepresentation")
    if allocated not in (8, 16) or not 2 <= bits <= allocated or high != bits - 1 or sign not in (0, 1):
        raise Refused(
            "bad-bits",
            f"Bits Allocated {allocated}, Bits Stored {bits}, High Bit {high}, Pixel Representation {sign} "
            "do not go together",
            _DEVICE,
        )
    return allocated, bits, sign == 1


def _check_length(ds: Dataset, expected: int) -> None:
    there = len(ds.PixelData)
    if there < expected:
        raise Refused(
            "truncated", f"Pixel Data has {there} bytes, Rows and Columns need {expected}", "Send it again"
        )


def _check_frame(ds: Dataset, rows: int, columns: int, syntax: str) -> None:
    try:
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    # pydicom raises ValueError, struct.error, EOFError … for whatever is wrong with the fragments.
    except Exception as error:
        raise Refused(
            "does-not-decode", f"Pixel Data is not encapsulated as {syntax} asks ({error})"[:300], _AGAIN
        ) from error
    if syntax == RLELossless.name:
        return  # no header of its own: it decodes to Rows x Columns or not at all
    header = inspect(frame)
    if header is None:
        raise Refused("does-not-decode", f"the pixel data has no {syntax} header", _AGAIN)
    if (header.rows, header.columns, header.components) != (rows, columns, 1):
        raise Refused(
            "size-mismatch",
            f"the compressed image is {header.columns} x {header.rows}, {header.components} component(s), "
            f"the header says {columns} x {rows} with one",
            _DEVICE,
        )
    if not header.complete:
        raise Refused("truncated", "the compressed image ends without its end marker", "Send it again")


def _decoded(ds: Dataset, syntax: str, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    try:
        if syntax == JPEGExtended12Bit.name and ds.BitsAllocated == 16:
            values = _jpeg12(ds, shape)
        else:
            values = pixel_array(ds, raw=True, correct_unused_bits=False)
    # Decoders raise whatever damaged bytes provoke; all of it means that there is no image to be had.
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise Refused(
            "does-not-decode", f"the {syntax} pixel data does not decode ({detail})", _AGAIN
        ) from error
    if values.shape != shape:
        raise Refused("does-not-decode", f"decoding gave {values.shape} instead of {shape}", _AGAIN)
    return values


def _jpeg12(ds: Dataset, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    with tempfile.NamedTemporaryFile(prefix="pacs-node-", suffix=".dcm") as file:
        ds.save_as(file, enforce_file_format=True)
        file.flush()
        return np.frombuffer(jpeg12.decode(Path(file.name)), "<u2").reshape(shape)


def _check_values(
    ds: Dataset, values: np.ndarray[Any, Any], allocated: int, bits: int, signed: bool
) -> Stored:
    """Bring the bits above High Bit to what the sign asks, unless they hold pixels after all."""
    kind = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    lowest, highest = int(values.min()), int(values.max())
    empty = Stored(np.empty(0, kind), bits, signed)
    if empty.lowest <= lowest and highest <= empty.highest:
        return Stored(values.astype(kind), bits, signed)
    if values.dtype.newbyteorder("=") == kind:
        unused = allocated - bits
        values = values.astype(kind)
        above = values.view(f"u{allocated // 8}") >> bits
        if _has_overlay_in_pixels(ds) or (signed and not above.any()):
            # Retired overlays in unused bits (PS3.5 8.1.2 before 2004), or a sign bit that was not extended.
            return Stored((values << unused) >> unused, bits, signed)
    raise Refused(
        "bits-exceeded",
        f"pixel values from {lowest} to {highest} do not fit the Bits Stored {bits} of the header",
        _DEVICE,
    )


def _has_overlay_in_pixels(ds: Dataset) -> bool:
    """Whether an overlay lies in unused bits of the pixels: Overlay Bit Position (60xx,0102) is not 0."""
    groups = {tag.group for tag in ds.keys() if 0x6000 <= tag.group <= 0x601E}  # noqa: SIM118
    return any((group, 0x0102) in ds and ds[group, 0x0102].value for group in groups)
