"""What a viewer shows of a DICOM file, as a picture that fits into a page.

Rendered with pydicom by the header alone, and so independently of the node's own reading of pixels: what is
inverted or wrongly windowed in a result is seen to be so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

MAX_SIDE = 1024
JPEG_QUALITY = 90
ZERO_GREY = 0.12
"""Grey of "no bone" in a bone image: not quite black, so that what the suppression has added is seen too."""


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, with its size in pixels and what it shows."""

    uri: str
    width: int
    height: int
    alt: str


def viewer_image(ds: Dataset) -> NDArray[np.uint8]:
    """The first frame as displayed: modality LUT, first VOI LUT or window, polarity. (rows, columns[, 3]).

    Without a VOI the whole range of values is shown. Raises what pydicom raises for what it cannot decode.
    """
    pixels = ds.pixel_array
    if int(ds.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[0]
    if ds.get("SamplesPerPixel", 1) == 3:
        return np.asarray(pixels, np.uint8)
    values = apply_modality_lut(pixels, ds)
    shown, (low, high) = values, (float(values.min()), float(values.max()))
    if ds.get("VOILUTSequence"):
        shown = apply_voi(values.astype(np.int64), ds)
        low, high = 0.0, 2.0 ** int(ds.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif ds.get("WindowWidth") not in (None, "") and ds.get("WindowCenter") not in (None, ""):
        shown = apply_windowing(values, ds)
        # Where the window's output begins and ends depends on bits and rescale: ask for it.
        low, high = (float(end) for end in apply_windowing(np.array([-1e9, 1e9]), ds))
    grey = np.clip((shown.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.rint(grey * 255).astype(np.uint8)


def bone_image(original: Dataset, suppressed: Dataset) -> tuple[NDArray[np.uint8], float]:
    """Original minus suppressed, dense is bright, and its amplification against the original's range.

    Both are compared in stored values, whose meaning a derived image shares with its source. Raises
    ValueError if their matrices differ.
    """
    one, other = (apply_modality_lut(ds.pixel_array, ds).astype(np.float64) for ds in (original, suppressed))
    if one.shape != other.shape:
        raise ValueError(f"the images have the matrices {one.shape} and {other.shape}")
    sign = -1 if original.PhotometricInterpretation == "MONOCHROME1" else 1
    low, high = np.percentile(one, [0.5, 99.5])
    bone = sign * (one - other) / max(high - low, 1e-9)
    strongest = max(float(np.percentile(bone, 99.8)), 1e-3)
    gain = (1 - ZERO_GREY) / strongest
    return np.rint(np.clip(ZERO_GREY + gain * bone, 0, 1) * 255).astype(np.uint8), gain


def picture(image: NDArray[np.uint8], alt: str) -> Picture:
    """``image`` (grey or RGB) reduced to at most 1024 pixels a side, as JPEG."""
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    coded = cv2.imencode(
        ".jpg", image[..., ::-1] if image.ndim == 3 else image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )[1]
    text = base64.b64encode(coded.tobytes()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{text}", image.shape[1], image.shape[0], alt)
