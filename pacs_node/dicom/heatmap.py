"""An anomaly heatmap burned over its radiograph: an RGB Secondary Capture (PS3.3 A.8.1), for every viewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.dicom import carried, codes
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, Derivation, Finding, ascii_text
from pacs_node.dicom.derived import describe, set_pixels
from pacs_node.dicom.pixels import Radiograph
from pacs_node.dicom.selfcheck import check
from pacs_node.errors import OutputError

MAX_SIDE = 2048
"""A larger matrix is reduced to this: the map is coarse, and RGB at full size would be large."""

OPACITY = 0.55
"""Of the colour where the heatmap is 1; where it is 0 the radiograph is untouched."""

COLOURS = cv2.COLORMAP_TURBO
"""Blue for little over yellow to red for much."""

# Of the acquisition, what the SC Image IOD has a place for (PS3.3 A.8.1.3).
_CARRIED = carried.words("""
    BodyPartExamined ProtocolName PatientPosition Laterality FrameOfReferenceUID PositionReferenceIndicator
    AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionNumber
""")


def heatmap_image(
    source: Dataset,
    radiograph: Radiograph,
    heatmap: NDArray[np.float32],
    findings: Sequence[Finding],
    derivation: Derivation,
) -> Dataset:
    """The object that shows ``heatmap`` over the radiograph, with the findings' scores written in.

    ``heatmap`` is float32 (rows, columns) in [0, 1] on the source's matrix. Raises OutputError.
    """
    if heatmap.shape != radiograph.image.shape or not np.isfinite(heatmap).all():
        raise OutputError(f"the heatmap ({heatmap.shape}) does not fit its image {radiograph.image.shape}")
    picture = draw(radiograph.image, heatmap, legend(findings, derivation))
    rows, columns = picture.shape[:2]
    ds = Dataset()
    carried.carry_identity(ds, source)
    carried.carry(ds, source, _CARRIED)
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = derivation.instance_uid(source)
    ds.SeriesInstanceUID = derivation.series_uid(source)
    ds.Modality = carried.modality(source, "OT")
    ds.SeriesNumber = carried.series_number(source, derivation)
    ds.SeriesDescription = f"AI anomaly heatmap - {NOT_FOR_DIAGNOSIS}"
    ds.InstanceNumber = carried.number(source, "InstanceNumber", 1)
    ds.ImageType = ["DERIVED", "SECONDARY", "", "ANOMALY_HEATMAP"]
    ds.ConversionType = "WSD"
    carried.set_content_date(ds, source, derivation.created)
    describe(ds, source, derivation, spatial="YES" if picture.shape[:2] == heatmap.shape else "NO")
    ds.DerivationCodeSequence = [codes.item(codes.ANOMALY_HEATMAP)]
    ds.PatientOrientation = source.get("PatientOrientation") or None
    carried.set_laterality(ds)
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    _set_spacing(ds, source, radiograph.image.shape[0] / rows)
    set_pixels(ds, picture)
    codes.identify_scheme(ds, list(source.get("CodingSchemeIdentificationSequence") or []))
    check(ds)
    return ds


def legend(findings: Sequence[Finding], derivation: Derivation) -> list[str]:
    """The lines that are written into the image; no patient data."""
    lines = [f"{derivation.qualification}: AI anomaly heatmap - {NOT_FOR_DIAGNOSIS}"]
    lines += [f"{f.name}: {f.decision}, score {f.score:.3f} (threshold {f.threshold:.3f})" for f in findings]
    lines.append(f"{derivation.model_name} {derivation.model_version}")
    return [ascii_text(line)[:90] for line in lines]


def draw(image: NDArray[np.float32], heatmap: NDArray[np.float32], lines: Sequence[str]) -> NDArray[np.uint8]:
    """uint8 (rows, columns, 3) RGB, at most 2048 pixels a side.

    ``image`` in grey, ``heatmap`` as colour over it, ``lines`` and the colour scale at the top left.
    """
    scale = min(1.0, MAX_SIDE / max(image.shape))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        heatmap = cv2.resize(heatmap, size, interpolation=cv2.INTER_AREA)
    grey = np.repeat(np.clip(image, 0, 1)[..., None] * 255, 3, axis=2)
    level = np.clip(heatmap, 0, 1)
    opacity = (
        OPACITY * (level * level * (3 - 2 * level))[..., None]
    )  # smoothstep: nothing at 0, no visible edge
    picture = np.rint(grey * (1 - opacity) + _colour(level) * opacity).astype(np.uint8)
    return _write(picture, lines)


def _colour(level: NDArray[Any]) -> NDArray[Any]:
    bgr = cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), COLOURS)
    return np.asarray(bgr[..., ::-1]).astype(np.float32)


def _write(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """Text on a dark translucent plate at the top left, no wider than the image, and the colour scale."""
    rows, columns = picture.shape[:2]
    canvas = Image.fromarray(picture)
    size = max(8.0, min(rows, columns) / 55)
    longest = max(lines, key=len)
    font = ImageFont.load_default(size)
    width = ImageDraw.Draw(canvas).textlength(longest, font=font)
    if width > 0.94 * columns:
        size = max(6.0, size * 0.94 * columns / width)
        font = ImageFont.load_default(size)
    step, margin = round(size * 1.35), round(size * 0.6)
    right = min(
        columns, 2 * margin + int(max(ImageDraw.Draw(canvas).textlength(t, font=font) for t in lines)) + 1
    )
    bottom = min(rows, 2 * margin + step * (len(lines) + 1))
    plate = canvas.crop((0, 0, right, bottom)).point(lambda value: value * 0.3)
    canvas.paste(plate, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((margin, margin + number * step), line, font=font, fill=(255, 255, 255))
    top = margin + len(lines) * step
    ramp = np.linspace(0, 1, max(8, min(right - 2 * margin, round(size * 12))), dtype=np.float32)[None]
    bar = np.rint(_colour(ramp)).astype(np.uint8).repeat(max(2, round(size * 0.6)), axis=0)
    canvas.paste(Image.fromarray(bar), (margin, top + round(size * 0.2)))
    pen.text((margin + bar.shape[1] + margin, top), "low to high", font=font, fill=(255, 255, 255))
    return np.asarray(canvas)


def _set_spacing(ds: Dataset, source: Dataset, factor: float) -> None:
    """Pixel Spacing of the (reduced) matrix; the detector's spacing where the source is not calibrated."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        pair = carried.spacing(source, keyword)
        if pair is not None:
            ds.PixelSpacing = [f"{value * factor:.8g}" for value in pair]
            return
