"""The pixels of a radiograph as a model and a radiologist see them, and back to the form of its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.conditions import Conditions
from pacs_node.dicom.codes import ANTERO_POSTERIOR, POSTERO_ANTERIOR
from pacs_node.dicom.decoding import Stored, decode
from pacs_node.dicom.display import Curve, Window, curve
from pacs_node.errors import OutputError, Refused

Image = NDArray[np.float32]

POLARITY_CONTRAST = 0.25
"""How much darker than both lungs the mediastinum must be for an image to be called inverted.

Of 845 frontal radiographs (709 adults and children of ChestX-ray14, 128 of JSRT, 8 dual-energy ones) none is
called inverted at 0.25, and of the same images inverted 48% are; one with a removed lung reaches 0.22.
"""


@dataclass(frozen=True)
class Radiograph:
    """One radiograph, decoded.

    ``image`` is float32 (rows, columns) in [0, 1] and bone-bright, as a viewer shows a MONOCHROME2 image;
    padding is 0. ``padding_mask`` is True where the source has no pixels. ``source_bits`` is Bits Stored.
    ``fitted_window`` is the window that was fitted because the source has none that can be used.
    ``warnings`` are for the report.
    """

    image: Image
    padding_mask: NDArray[np.bool_]
    source_bits: int
    warnings: list[str]
    stored: Stored
    curve: Curve
    padding_range: tuple[int, int] | None = None

    @property
    def fitted_window(self) -> Window | None:
        """See the class."""
        return self.curve.fitted

    def to_stored(self, image: Image) -> NDArray[Any]:
        """``image`` (same shape and meaning as ``.image``) as stored values of the source's type, bits and
        polarity.

        Works by difference: a pixel that is unchanged keeps its exact stored value, and one that the window
        clips keeps its distance to the window. Padding stays padding, and nothing else becomes it. Raises
        OutputError for another shape or values that are not finite.
        """
        if image.shape != self.image.shape:
            raise OutputError(f"the result has the shape {image.shape}, its source {self.image.shape}")
        if not np.isfinite(image).all():
            raise OutputError("the result has values that are not finite")
        result = self.stored.values.copy()
        changed = (image != self.image) & ~self.padding_mask
        before, after = self.image[changed], np.clip(image[changed], 0, 1)
        shift = self.curve.positions(after) - self.curve.positions(before)
        values = np.rint(result[changed] + shift)
        values = np.clip(values, self.stored.lowest, self.stored.highest)
        if self.padding_range is not None:
            values = _beside(values, self.padding_range, self.stored)
        result[changed] = values.astype(result.dtype)
        return result


def read_radiograph(ds: Dataset, max_pixels: int) -> Radiograph:
    """Decode ``ds``. Raises Refused with the codes of ``decoding.decode`` and ``display.curve``.

    ``max_pixels`` bounds Rows x Columns, checked before anything of that size is allocated.
    """
    warnings: list[str] = []
    stored = decode(ds, max_pixels)
    padding = _padding_range(ds, stored)
    mask = np.zeros(stored.values.shape, dtype=np.bool_)
    if padding is not None:
        mask = (stored.values >= padding[0]) & (stored.values <= padding[1])
        if mask.all():
            raise Refused(
                "constant-image", "all pixels are padding", "Correct it in the device that sends it"
            )
    shown = curve(ds, stored, ~mask, warnings)
    image = shown.show(stored.values)
    if looks_inverted(image):
        if ds.get("SOPClassUID") == SecondaryCaptureImageStorage:
            # The tag of a secondary capture is the word of a converter, not of a detector.
            warnings.append(
                f"the pixels contradict Photometric Interpretation {ds.PhotometricInterpretation}: the image "
                "was analysed with the opposite polarity; results are stored with the source's"
            )
            shown = Curve(shown.first, 1 - shown.display, shown.fitted)
            image = shown.show(stored.values)
        else:
            warnings.append(
                "the image looks inverted (lungs brighter than the mediastinum); check its polarity"
            )
    image[mask] = 0
    return Radiograph(image, mask, stored.bits, warnings, stored, shown, padding)


def looks_inverted(image: Image) -> bool:
    """Whether a frontal chest is bone-dark: its mediastinum much darker than both lungs. Meant to miss,
    not to err.
    """
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    low, high = np.percentile(small, [1, 99])
    if high <= low:
        return False
    small = np.clip((small - low) / (high - low), 0, 1)
    middle = np.median(small[16:48, 28:36])
    sides = (np.median(small[18:38, 12:24]), np.median(small[18:38, 40:52]))
    return bool(min(sides) - middle > POLARITY_CONTRAST)


def conditions(ds: Dataset) -> Conditions:
    """Age, sex and view as the header says them; what it does not say, or says impossibly, is None."""
    sex = str(ds.get("PatientSex") or "").strip().upper()
    return Conditions(
        age_years=_age(ds),
        sex="M" if sex == "M" else "F" if sex == "F" else None,
        view=_view(ds),
    )


def _age(ds: Dataset) -> float | None:
    """Patient's Age (some converters leave out the unit: years then), else study date less birth date."""
    match = re.fullmatch(r"\s*(\d{1,3})\s*([DWMY]?)\s*", str(ds.get("PatientAge") or "").upper())
    if match:
        years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0}.get(match[2], 1.0)
        return years if years <= 120 else None
    born, taken = _date(ds.get("PatientBirthDate")), _date(ds.get("StudyDate") or ds.get("AcquisitionDate"))
    if born is None or taken is None:
        return None
    years = (taken - born).days / 365.25
    return round(years, 2) if 0 <= years <= 120 else None


def _date(value: object) -> date | None:
    text = str(value or "").strip()
    if not re.fullmatch(r"\d{8}", text):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def _view(ds: Dataset) -> Literal["PA", "AP"] | None:
    position = str(ds.get("ViewPosition") or "").strip().upper()
    if position in ("PA", "AP"):
        return "PA" if position == "PA" else "AP"
    values = {str(item.get("CodeValue") or "") for item in ds.get("ViewCodeSequence") or []}
    # SNOMED CT, and the SNOMED RT codes that older devices use.
    if values & {POSTERO_ANTERIOR.value, "R-10214"}:
        return "PA"
    return "AP" if values & {ANTERO_POSTERIOR.value, "R-10206"} else None


def _padding_range(ds: Dataset, stored: Stored) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "no pixel here" (PS3.3 C.7.5.1.1.2)."""
    first, last = (ds.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if not isinstance(first, int):
        return None
    ends = [first, last if isinstance(last, int) else first]
    if stored.signed:
        # An explicit VR of US for a signed image: the two's complement is meant.
        ends = [e - (1 << 16) if e > 0x7FFF else e for e in ends]
    return min(ends), max(ends)


def _beside(values: NDArray[Any], padding: tuple[int, int], stored: Stored) -> NDArray[Any]:
    """Move values that would mean padding to the nearest one on the side that the stored range still has."""
    low, high = padding
    below, above = low - 1, high + 1
    hit = (values >= low) & (values <= high)
    if below < stored.lowest:
        below = above
    elif above > stored.highest:
        above = below
    return np.where(hit, np.where(values - low < high - values, below, above), values)
