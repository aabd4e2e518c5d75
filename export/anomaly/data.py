"""NIH ChestX-ray14 as the anomaly task sees it: split by patient, small grey images.

Approximate lung masks.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

TEST_SHARE, VALIDATION_SHARE = 0.36, 0.10


@dataclass(frozen=True)
class Record:
    """One radiograph of the set: where it lies, whose it is, its conditions and whether it is normal."""

    path: Path
    patient: str
    age: float
    sex: str
    view: str
    labels: str

    @property
    def normal(self) -> bool:
        return self.labels == "No Finding"

    @property
    def conditions(self) -> tuple[float, float, float, float, float]:
        """[age / 100, age known, sex (+1 M, -1 F), view (+1 PA, -1 AP), 1].

        As the exported graph takes them.
        """
        return condition_vector(self.age, self.sex, self.view)


def condition_vector(
    age: float | None, sex: str | None, view: str | None
) -> tuple[float, float, float, float, float]:
    """The five numbers a model is conditioned on; what is not known is 0, never a guess."""
    return (
        age / 100 if age is not None else 0.0,
        0.0 if age is None else 1.0,
        {"M": 1.0, "F": -1.0}.get(sex or "", 0.0),
        {"PA": 1.0, "AP": -1.0}.get(view or "", 0.0),
        1.0,
    )


def part_of(patient: str) -> str:
    """``test``, ``validation`` or ``train``: by a hash of the patient.

    So that it never changes or overlaps.
    """
    digest = hashlib.sha256(f"pacs-node anomaly {patient}".encode()).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def read_records(data: Path) -> list[Record]:
    """All radiographs of ``data/nih_cxr14``, in file order."""
    with (data / "nih_cxr14" / "metadata.csv").open(newline="") as file:
        return [
            Record(
                data / "nih_cxr14" / "images" / row["file"],
                row["patient"],
                float(row["age"]),
                row["sex"],
                row["view"],
                row["labels"],
            )
            for row in csv.DictReader(file)
        ]


def select(records: list[Record], part: str, *, normal: bool | None = None) -> list[Record]:
    """The records of one part of the split, of normal or abnormal radiographs or (None) of both."""
    return [r for r in records if part_of(r.patient) == part and normal in (None, r.normal)]


def read_image(path: Path, size: int) -> np.ndarray:
    """Grey image as float32 in [0, 1], padded by its edge to a square and area-resized to ``size``."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise FileNotFoundError(f"{path} is not a readable image")
    rows, columns = image.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    image = cv2.copyMakeBorder(
        image, top, side - rows - top, left, side - columns - left, cv2.BORDER_REPLICATE
    )
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def read_images(paths: list[Path], size: int, cache: Path | None = None) -> np.ndarray:
    """(n, size, size) uint8.

    Kept in ``cache`` (a folder that git ignores) since decoding 1024 px takes longest.
    """
    key = hashlib.sha256(f"{size}\n{[str(p) for p in paths]}".encode()).hexdigest()[:16]
    file = cache / f"images-{key}.npy" if cache else None
    if file and file.exists():
        return np.load(file)
    images = np.stack([np.round(read_image(p, size) * 255).astype(np.uint8) for p in paths])
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, images)
    return images


def lung_mask(image: np.ndarray) -> np.ndarray:
    """Approximate lung fields of a frontal radiograph, float32 in [0, 1] with soft edges.

    Dark regions of the thorax that do not reach the border, closed and kept where lungs usually lie. Good
    enough to place synthetic findings; nothing is measured with it.
    """
    size = image.shape[0]
    smooth = cv2.GaussianBlur(image, (0, 0), size / 64)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    prior = np.zeros_like(smooth)
    for centre in (0.29, 0.71):
        prior = np.maximum(prior, np.exp(-((((x - centre) / 0.19) ** 2 + ((y - 0.47) / 0.33) ** 2) ** 2)))
    likely = prior > 0.35
    otsu, _ = cv2.threshold(
        (np.clip(smooth[likely], 0, 1) * 255).astype(np.uint8).reshape(-1, 1), 0, 255, cv2.THRESH_OTSU
    )
    level = max(otsu / 255, float(np.quantile(smooth[likely], 0.6)))
    dark = ((smooth < level) & likely).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, size // 16) | 1,) * 2)
    dark = cv2.morphologyEx(cv2.morphologyEx(dark, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    if dark.mean() < 0.08:
        dark = likely.astype(np.uint8)
    return cv2.GaussianBlur(dark.astype(np.float32), (0, 0), size / 100)
