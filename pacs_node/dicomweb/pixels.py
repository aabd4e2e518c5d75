"""Frames and pictures of an image."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from pacs_node.dicom.decoding import Stored
from pacs_node.dicom.display import curve, windowed
from pacs_node.dicomweb.errors import bad_request, not_acceptable, not_found
from pacs_node.errors import Refused

Array = NDArray[Any]

#: PS3.18 Table 8.7.3-5: the media type of one frame as it is encapsulated.
MEDIA_TYPES: dict[str, str] = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
_AS_STORED = "Retrieve the instance as it is stored: application/dicom with transfer-syntax=*"
_DEFAULT_QUALITY = 90


@dataclass(frozen=True)
class View:
    """How a picture is wanted. ``window``: centre, width and function in place of the header's; ``box``: the
    largest width and height.
    """

    window: tuple[float, float, str] | None = None
    box: tuple[int, int] | None = None
    quality: int = _DEFAULT_QUALITY


def shape(ds: Dataset, max_pixels: int) -> tuple[int, int, int, int]:
    """Rows, columns, samples per pixel and frames. Raises RequestError if it is no image that is decoded."""
    try:
        rows, columns = int(ds.Rows), int(ds.Columns)
        samples, frames = int(ds.get("SamplesPerPixel") or 1), int(ds.get("NumberOfFrames") or 1)
        usable = isinstance(ds.get("PixelData"), bytes) and min(rows, columns, frames) > 0
        bits, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    except (AttributeError, TypeError, ValueError):
        usable = False
    if not usable:
        raise not_found("the instance has no pixels", "Ask for its metadata, or for the instance")
    if rows * columns > max_pixels:
        raise not_acceptable(f"the image is larger than limits.max_pixels ({max_pixels})", _AS_STORED)
    if samples not in (1, 3) or bits not in (8, 16) or not 1 <= stored <= bits:
        raise not_acceptable("pixels of this kind are not decoded here", _AS_STORED)
    return rows, columns, samples, frames


def compressed_frame(ds: Dataset, number: int, frames: int) -> bytes:
    """Frame ``number`` (from 1) as it is encapsulated. Raises RequestError."""
    try:
        return get_frame(ds.PixelData, number - 1, number_of_frames=frames)
    # pydicom raises ValueError, struct.error, EOFError … for whatever is wrong with the fragments.
    except Exception as error:
        raise not_acceptable("the encapsulated pixel data cannot be taken apart", _AS_STORED) from error


def frame(ds: Dataset, number: int, max_pixels: int) -> bytes:
    """Frame ``number`` (from 1) uncompressed, little endian, as native pixel data has it. Raises
    RequestError.
    """
    rows, columns, samples, frames = shape(ds, max_pixels)
    if not 1 <= number <= frames:
        raise not_found(f"the instance has {frames} frame(s)", "Ask for frames from 1 to that number")
    if UID(ds.file_meta.TransferSyntaxUID).is_encapsulated:
        return np.ascontiguousarray(values(ds, number, max_pixels)).tobytes()
    size = rows * columns * samples * int(ds.BitsAllocated) // 8
    data = bytes(ds.PixelData[(number - 1) * size : number * size])
    if len(data) < size:
        raise not_acceptable("the pixel data ends before this frame does", _AS_STORED)
    return data


def values(ds: Dataset, number: int, max_pixels: int) -> Array:
    """Frame ``number`` decoded: (rows, columns) or (rows, columns, 3), of the stored type, colours as they
    are stored. Raises RequestError.
    """
    rows, columns, _, frames = shape(ds, max_pixels)
    if not 1 <= number <= frames:
        raise not_found(f"the instance has {frames} frame(s)", "Ask for frames from 1 to that number")
    try:
        found = pixel_array(ds, raw=True, index=number - 1)
    # Decoders raise whatever damaged bytes provoke; all of it means that there is no image to be had.
    except Exception as error:
        raise not_acceptable("the pixel data does not decode", _AS_STORED) from error
    if found.shape[:2] != (rows, columns):
        raise not_acceptable("the pixel data is not of the size that the header says", _AS_STORED)
    kind = np.dtype(f"<{'i' if ds.get('PixelRepresentation') == 1 else 'u'}{int(ds.BitsAllocated) // 8}")
    return np.asarray(found).astype(kind)


def picture(ds: Dataset, number: int, view: View, media_type: str, max_pixels: int) -> bytes:
    """Frame ``number`` as a PNG or JPEG of 8 bits, as a viewer shows it: modality and VOI transformation,
    and white for what is bright (PS3.18 10.4.1.2). Raises RequestError.
    """
    found = values(ds, number, max_pixels)
    if found.ndim == 3:
        image = Image.fromarray(_colours(ds, found))
    else:
        image = Image.fromarray(np.rint(_shown(ds, found, view) * 255).astype(np.uint8))
    if view.box:
        image.thumbnail(view.box, Image.Resampling.BOX)
    buffer = io.BytesIO()
    if media_type == "image/png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=view.quality, subsampling=0)
    return buffer.getvalue()


def _colours(ds: Dataset, found: Array) -> NDArray[np.uint8]:
    photometric = str(ds.get("PhotometricInterpretation") or "")
    shown = found if found.dtype == np.uint8 else found >> (int(ds.BitsStored) - 8)
    if photometric.startswith("YBR_FULL"):
        return _rgb(shown)
    if photometric not in ("RGB", "YBR_ICT", "YBR_RCT"):
        raise not_acceptable("colours of this kind are not rendered", _AS_STORED)
    colours: NDArray[np.uint8] = shown.astype(np.uint8)
    return colours


def _rgb(ybr: Array) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.2, YBR_FULL."""
    y, b, r = np.moveaxis(ybr.astype(np.float32), -1, 0)
    b, r = b - 128, r - 128
    colours = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], axis=-1)
    shown: NDArray[np.uint8] = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    return shown


def _shown(ds: Dataset, found: Array, view: View) -> Array:
    """Display values in [0, 1]."""
    if ds.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise not_acceptable("an image of this photometric interpretation is not rendered", _AS_STORED)
    bits, signed = int(ds.BitsStored), ds.get("PixelRepresentation") == 1
    bounds = Stored(found, bits, signed)
    stored = Stored(np.clip(found, bounds.lowest, bounds.highest), bits, signed)
    try:
        if view.window is not None:
            shown = windowed(ds, stored, *view.window)
        else:
            valid = np.ones(found.shape, np.bool_)
            shown = curve(ds, stored, valid, [])
    except Refused as refused:
        if refused.code == "constant-image":
            return np.zeros(found.shape)
        raise not_acceptable("a lookup table of the header cannot be used", _AS_STORED) from refused
    return np.asarray(shown.show(stored.values))


def view_of(parameters: dict[str, str]) -> View:
    """The query parameters of a rendered resource (PS3.18 8.3.5). Raises RequestError."""
    window = box = None
    quality = _DEFAULT_QUALITY
    for name, value in parameters.items():
        try:
            match name:
                case "window":
                    centre, width, function = (*value.split(","), "linear")[:3]
                    names = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
                    window = float(centre), float(width), names[function]
                    if not all(map(math.isfinite, window[:2])) or window[1] < 1:
                        raise ValueError
                case "viewport":
                    wide, high = (int(side) for side in value.split(",")[:2])
                    if value.count(",") != 1 or not (0 < wide <= 1 << 15 and 0 < high <= 1 << 15):
                        raise ValueError
                    box = wide, high
                case "quality":
                    quality = int(value)
                    if not 1 <= quality <= 100:
                        raise ValueError
                case "accept":
                    pass
                case _:
                    raise bad_request(
                        "a parameter is not one of a rendered resource",
                        "Use window, viewport, quality or accept",
                    )
        except (ValueError, KeyError) as error:
            raise bad_request(
                f"the parameter {name} is not as it must be",
                "Use window=CENTRE,WIDTH,linear (or linear-exact, sigmoid; WIDTH from 1), "
                "viewport=WIDTH,HEIGHT, quality=1 to 100",
            ) from error
    return View(window, box, quality)
