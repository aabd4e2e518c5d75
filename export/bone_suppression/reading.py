"""The two images of a pair and its lung mask, read, checked against each other, and brought to one square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from export.bone_suppression.pairs import DataError, Defect, Found, is_dicom
from pacs_node.dicom.files import open_dicom
from pacs_node.dicom.pixels import Radiograph, looks_inverted, read_radiograph
from pacs_node.errors import Refused
from pacs_node.infer.geometry import Frame, check_image

Array = np.ndarray
MAX_PIXELS, MAX_BYTES = 100_000_000, 1 << 30
#: Correlation at 64 px. Of 136 true pairs (JSRT, SZCH, Gusarev) the lowest is 0.988; of 134 pairs of
#: different patients the highest 0.91.
ALIKE = 0.92
LEVELS = 65535


@dataclass(frozen=True)
class Read:
    """A pair in its own matrix: float32 (rows, columns) in [0, 1], bone-bright; ``lungs`` alike or None.

    ``correlation`` is that of the two images at 64 px, ``change`` how much darker the soft-tissue image is on
    average, in parts of the range. ``remarks`` are for a human.
    """

    found: Found
    radiograph: Array
    soft_tissue: Array
    lungs: Array | None
    bits: tuple[int, int]
    correlation: float
    remarks: list[str] = field(default_factory=list)

    @property
    def change(self) -> float:
        """See the class."""
        return float((self.radiograph - self.soft_tissue).mean())

    def planes(self, size: int) -> Array:
        """(2 or 3, size, size) uint16 from black to white: radiograph, soft tissue, lungs if there are."""
        images = [self.radiograph, self.soft_tissue, *([] if self.lungs is None else [self.lungs])]
        return np.stack([square(image, size) for image in images])


def square(image: Array, size: int) -> Array:
    """(rows, columns) in [0, 1] in the square that the runtime brings images to, as uint16."""
    levels = np.round(np.clip(Frame(*image.shape, size).to_square(image), 0, 1) * LEVELS)
    return levels.astype(np.uint16)


def fault(path: Path, what: str, remedy: str) -> DataError:
    """One defect as an error."""
    return DataError([Defect(str(path), what, remedy)])


def read_pair(found: Found, tone: str = "own") -> Read:
    """The pair's images. Raises DataError with what is wrong with it.

    ``tone``: each DICOM image is shown by its "own" window, or both by that of the radiograph ("radiograph").
    """
    radiograph, bits, remarks = _read(found.radiograph)
    soft, soft_bits, more = _read(found.soft_tissue)
    remarks = [*remarks, *(m for m in more if m not in remarks)]
    if isinstance(radiograph, Radiograph) and isinstance(soft, Radiograph):
        if tone == "radiograph":
            curve, values = radiograph.curve, soft.stored.values
            index = np.clip(values.astype(np.int64), curve.first, curve.first + len(curve.display) - 1)
            soft_image = curve.show(index)
            soft_image[soft.padding_mask] = 0
        else:
            soft_image = soft.image
        images = [radiograph.image, soft_image]
    elif isinstance(radiograph, Radiograph) or isinstance(soft, Radiograph):
        raise fault(
            found.soft_tissue, "is of another kind than its radiograph", "Give both as DICOM or as images"
        )
    else:
        bits = soft_bits = max(bits, soft_bits)  # twelve bits in sixteen look black by themselves
        images = [i.astype(np.float32) / ((1 << bits) - 1) for i in (radiograph, soft)]
    images = _same_field(found, images)
    for path, image in zip((found.radiograph, found.soft_tissue), images, strict=True):
        try:
            check_image(image)
        except Refused as refusal:
            raise fault(path, refusal.reason, refusal.remedy) from refusal
    if looks_inverted(images[0]) and not isinstance(radiograph, Radiograph):
        raise fault(
            found.radiograph,
            "looks inverted: its lungs are brighter than the mediastinum",
            "Give bone-bright images: invert both of the pair",
        )
    correlation = _correlation(*images)
    _check_alike(found, images, correlation)
    lungs = None if found.lungs is None else read_lungs(found.lungs, images[0].shape)
    return Read(found, *images, lungs, (bits, soft_bits), correlation, remarks)


def read_lungs(path: Path, matrix: tuple[int, int]) -> Array:
    """A lung mask, 0 or 1. Raises DataError unless it has the ``matrix`` of its radiograph."""
    mask = _read_image(path)[0]
    if any(abs(a - b) > 1 for a, b in zip(mask.shape, matrix, strict=True)):
        raise fault(
            path,
            f"is {mask.shape[0]} x {mask.shape[1]}, its radiograph {matrix[0]} x {matrix[1]}",
            "A lung mask has the matrix of its radiograph",
        )
    inside = (mask > mask.max() / 2).astype(np.float32)
    return cv2.resize(inside, matrix[::-1], interpolation=cv2.INTER_NEAREST)


def read_alone(path: Path) -> Array:
    """One radiograph without a twin, float32 (rows, columns) in [0, 1]. Raises DataError."""
    image, bits, _ = _read(path)
    shown = image.image if isinstance(image, Radiograph) else image.astype(np.float32) / ((1 << bits) - 1)
    try:
        check_image(shown)
    except Refused as refusal:
        raise fault(path, refusal.reason, refusal.remedy) from refusal
    return shown


def _read(path: Path) -> tuple[Radiograph | Array, int, list[str]]:
    """A DICOM radiograph or the integers of an image; its bits; what the reader remarked."""
    if not is_dicom(path):
        image, bits = _read_image(path)
        return image, bits, []
    try:
        radiograph = read_radiograph(open_dicom(path, MAX_BYTES), MAX_PIXELS)
    except Refused as refusal:
        raise fault(path, refusal.reason, refusal.remedy or "Take the file away") from refusal
    return radiograph, radiograph.source_bits, radiograph.warnings


def _read_image(path: Path) -> tuple[Array, int]:
    """Grey values (rows, columns) as uint8 or uint16, and how many bits they take of 8, 10, 12, 14, 16."""
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image.convert("RGB") if image.mode in ("P", "1") else image)
    except UnidentifiedImageError as error:
        raise fault(path, "is no image that can be read", "Give PNG, JPEG, TIFF or DICOM") from error
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise fault(path, f"cannot be read ({error})"[:200], "Copy the file again from its source") from error
    if values.ndim == 3:
        grey = values[..., 0]
        colours = values[..., 1 : {2: 1, 4: 3}.get(values.shape[2], 3)]
        if np.any(np.abs(colours.astype(np.int32) - grey[..., None]) > 2):
            raise fault(path, "is a colour image", "Give grey images: bones have no colour")
        values = grey
    if values.dtype == np.int32 and values.min() >= 0 and values.max() <= LEVELS:
        values = values.astype(np.uint16)
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        raise fault(path, f"has {values.dtype} values", "Give 8 or 16 bit unsigned integers")
    if values.dtype.itemsize == 1:
        return values, 8
    return values.astype(np.uint16), next(b for b in (8, 10, 12, 14, 16) if values.max() < 1 << b)


def _same_field(found: Found, images: Sequence[Array]) -> list[Array]:
    """Both images, a row or column too many cut off."""
    (rows, columns), (rows_of_twin, columns_of_twin) = (i.shape for i in images)
    if abs(rows - rows_of_twin) > 1 or abs(columns - columns_of_twin) > 1:
        raise fault(
            found.radiograph,
            f"is {rows} x {columns}, its twin {found.soft_tissue} {rows_of_twin} x {columns_of_twin}",
            "A pair must show the same field in the same matrix: export both alike",
        )
    part = np.s_[: min(rows, rows_of_twin), : min(columns, columns_of_twin)]
    return [np.ascontiguousarray(i[part]) for i in images]


def _correlation(one: Array, other: Array) -> float:
    small = [cv2.resize(i, (64, 64), interpolation=cv2.INTER_AREA).ravel() for i in (one, other)]
    return float(np.corrcoef(*small)[0, 1])


def _check_alike(found: Found, images: Sequence[Array], correlation: float) -> None:
    pair = f"{found.radiograph} and {found.soft_tissue}"
    if np.array_equal(*images):
        raise DataError(
            [Defect(pair, "are the same image", "The twin must be the image without bones: export it anew")]
        )
    if correlation < -ALIKE:
        raise DataError(
            [
                Defect(
                    pair,
                    f"are each other's negative (correlation {correlation:.2f})",
                    "Invert one of them, or correct its Photometric Interpretation",
                )
            ]
        )
    if correlation < ALIKE:
        raise DataError(
            [
                Defect(
                    pair,
                    f"do not show the same (correlation {correlation:.2f}; a true pair has over {ALIKE})",
                    "Check that the names belong together and that both show the same field",
                )
            ]
        )
