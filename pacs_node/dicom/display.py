"""How a viewer shows stored values: Modality LUT, VOI LUT and polarity as one curve, and back.

All three act on each pixel by its stored value alone, so they are computed once for each of the at most
65,536 stored values. PS3.4 N.2 (grayscale transformations), PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT),
C.8.11.3.1.2 (Pixel Intensity Relationship).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForProcessing

from pacs_node.dicom.decoding import Stored
from pacs_node.errors import Refused

Array = NDArray[Any]

PERCENTILES = (0.5, 99.5)
"""What becomes black and white where the header has no usable window."""

MIN_INSIDE = 0.05
"""A window that shows fewer of the pixels than this between black and white contradicts them."""

MIN_SPREAD = 0.02
"""So does one that shows nearly all pixels in this little of the way from black to white."""

_DEVICE = "Correct it in the device that sends it"


@dataclass(frozen=True)
class Window:
    """A linear window by the values that become black and white."""

    low: float
    high: float

    @property
    def centre_and_width(self) -> tuple[float, float]:
        """Window Center and Width of the LINEAR function (PS3.3 C.11.2.1.2.1) that does the same."""
        width = self.high - self.low + 1
        return self.low + width / 2, width


@dataclass(frozen=True)
class Curve:
    """Display value in [0, 1], bone-bright, of each stored value from ``first`` upwards.

    ``fitted`` is the window that was fitted to the pixels because the header has none that can be used.
    """

    first: int
    display: Array
    fitted: Window | None = None

    def show(self, stored: Array) -> Array:
        """Display values (float32) of stored values."""
        return self.display.astype(np.float32)[stored.astype(np.int32) - self.first]

    def positions(self, image: Array) -> Array:
        """The stored values (float64, not rounded) that are shown as ``image``.

        The inverse on the part of the curve between black and white; a curve that turns back on itself is
        replaced by the nearest one from below that does not.
        """
        levels = self.display if self.display[-1] >= self.display[0] else self.display[::-1]
        stored = np.arange(self.first, self.first + len(levels), dtype=np.float64)
        if levels is not self.display:
            stored = stored[::-1]
        levels = np.maximum.accumulate(levels)
        start = int(np.searchsorted(levels, levels[0], side="right")) - 1
        stop = int(np.searchsorted(levels, levels[-1], side="left"))
        level, index = np.unique(levels[start : stop + 1], return_index=True)
        return np.interp(image, level, stored[start : stop + 1][index])


def curve(ds: Dataset, stored: Stored, valid: Array, warnings: list[str]) -> Curve:
    """The curve of ``ds``; ``valid`` marks the pixels that are not padding, ``warnings`` takes what was
    noticed.

    Raises Refused ``constant-image`` and ``bad-lut``.
    """
    values = np.arange(stored.lowest, stored.highest + 1, dtype=np.float64)
    modality = _modality(ds, values)
    used = stored.values[valid]
    if used.size == 0 or used.min() == used.max():
        raise Refused("constant-image", "all pixels have the same value: the image shows nothing", _DEVICE)
    counts = np.bincount(used.astype(np.int32) - stored.lowest, minlength=len(values))

    if ds.get("SOPClassUID") == DigitalXRayImageStorageForProcessing:
        attenuation = _attenuation(ds, modality, counts, warnings)
        return _fit(stored.lowest, attenuation, counts, window_allowed=False)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1"
    shown = _voi(ds, modality, warnings)
    if shown is not None and not _usable(shown, counts):
        warnings.append(
            "the window of the header does not fit the pixel values; percentiles are used instead"
        )
        shown = None
    if shown is not None:
        return Curve(stored.lowest, 1 - shown if inverted else shown)
    fit = _fit(stored.lowest, modality, counts, window_allowed=True)
    return Curve(fit.first, 1 - fit.display, fit.fitted) if inverted else fit


def windowed(ds: Dataset, stored: Stored, centre: float, width: float, function: str) -> Curve:
    """The curve of ``ds`` with this window (``function``: LINEAR, LINEAR_EXACT or SIGMOID) in place of the
    header's, whether it fits the pixels or not. Raises Refused ``bad-lut``.
    """
    wanted = Dataset()
    wanted.WindowCenter, wanted.WindowWidth, wanted.VOILUTFunction = centre, width, function
    values = np.arange(stored.lowest, stored.highest + 1, dtype=np.float64)
    shown = _voi(wanted, _modality(ds, values), [])
    if shown is None:
        raise Refused("bad-lut", f"a window of the width {width:g} shows nothing", "Give a width from 1")
    return Curve(stored.lowest, 1 - shown if ds.PhotometricInterpretation == "MONOCHROME1" else shown)


def _modality(ds: Dataset, values: Array) -> Array:
    items = ds.get("ModalityLUTSequence")
    if items:
        table, first, _ = _lut(items[0], "Modality LUT")
        return np.asarray(table[np.clip(values - first, 0, len(table) - 1).astype(np.int64)])
    slope, intercept = _number(ds.get("RescaleSlope")), _number(ds.get("RescaleIntercept"))
    if slope is None or intercept is None or slope == 0:
        return values
    return values * slope + intercept


def _voi(ds: Dataset, modality: Array, warnings: list[str]) -> Array | None:
    """Display values in [0, 1] by the first VOI LUT or window, without polarity; None without a usable
    one.
    """
    items = ds.get("VOILUTSequence")
    if items:
        table, first, bits = _lut(items[0], "VOI LUT")
        top = float(table.max())
        full = float((1 << bits) - 1)
        if (
            top <= full / 2
        ):  # the descriptor claims more bits than the table uses: a common mistake of devices
            full = float((1 << max(int(top).bit_length(), 1)) - 1)
        index = np.clip(np.rint(modality) - first, 0, len(table) - 1).astype(np.int64)
        return np.asarray(np.clip(table[index] / full, 0, 1))
    centre, width = _number(ds.get("WindowCenter")), _number(ds.get("WindowWidth"))
    if centre is None or width is None:
        warnings.append("the header has no window; percentiles of the pixel values are used instead")
        return None
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (modality - centre) / width, -60, 60))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((modality - centre) / width + 0.5, 0, 1)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append(f"VOI LUT Function {ascii(function)[:20]} is unknown; LINEAR is used")
    if width < 1:
        warnings.append("the header's window has no width; percentiles of the pixel values are used instead")
        return None
    if width == 1:
        return (modality > centre - 0.5).astype(np.float64)
    return np.clip((modality - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _attenuation(ds: Dataset, modality: Array, counts: Array, warnings: list[str]) -> Array:
    """Values that grow with the attenuation of the X-rays, for an image that is not made to be looked at.

    LIN values are proportional to the intensity, whose negative logarithm is the attenuation; LOG values are
    logarithms already. Sign +1: larger values are more X-rays; -1: fewer (PS3.3 C.8.11.3.1.2).
    """
    more_is_less = _number(ds.get("PixelIntensityRelationshipSign")) == -1
    if ds.get("PixelIntensityRelationshipSign") is None:
        more_is_less = ds.PhotometricInterpretation == "MONOCHROME2"
        warnings.append(
            "Pixel Intensity Relationship Sign is missing; the polarity is taken from the photometric one"
        )
    if ds.get("PixelIntensityRelationship") == "LIN":
        # No intensity is at one end of what can be stored: the lower one, or the upper one with sign -1.
        intensity = modality.max() - modality if more_is_less else modality - modality.min()
        step = max(float(np.ptp(modality[counts > 0])) / 4096, 1e-6)
        return np.asarray(-np.log(intensity + step))
    return modality if more_is_less else -modality


def _fit(first: int, modality: Array, counts: Array, *, window_allowed: bool) -> Curve:
    """A linear window from percentile to percentile of the pixels (from end to end if those two are one)."""
    order = np.argsort(modality, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    low, high = (float(modality[order][np.searchsorted(share, p / 100)]) for p in PERCENTILES)
    if high <= low:
        occurring = modality[counts > 0]
        low, high = float(occurring.min()), float(occurring.max())
    if high <= low:
        raise Refused("constant-image", "all pixels are shown the same: the image shows nothing", _DEVICE)
    shown = np.clip((modality - low) / (high - low), 0, 1)
    return Curve(first, shown, Window(low, high) if window_allowed else None)


def _usable(shown: Array, counts: Array) -> bool:
    inside = counts[(shown > 0) & (shown < 1)].sum() / counts.sum()
    order = np.argsort(shown, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    low, high = (shown[order][np.searchsorted(share, p)] for p in (0.01, 0.99))
    return bool(inside >= MIN_INSIDE and high - low >= MIN_SPREAD)


def _lut(item: Dataset, name: str) -> tuple[Array, int, int]:
    """A LUT's entries, the first value that it maps and its bits (PS3.3 C.11.1.1, C.11.2.1.1)."""
    try:
        entries, first, bits = (int(v) for v in item.LUTDescriptor)
        data = item.LUTData
        entries = entries or 1 << 16
        if isinstance(data, bytes):
            table = np.frombuffer(data, "<u2" if len(data) >= 2 * entries else "u1")
        else:
            table = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
        if len(table) < entries or not 1 <= bits <= 16:
            raise ValueError(f"{len(table)} entries of {bits} bits instead of {entries}")
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused("bad-lut", f"the {name} cannot be used ({error})"[:200], _DEVICE) from error
    return table[:entries].astype(np.float64), first, bits


def _number(value: object) -> float | None:
    """The first value of a decimal attribute, or None if there is none that is a finite number."""
    if isinstance(value, (list, tuple)) or (hasattr(value, "__iter__") and not isinstance(value, str)):
        value = next(iter(value), None)
    if "_" in str(value):  # which Python would take for a separator of digits
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
