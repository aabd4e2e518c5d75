"""The pairs that a model is measured on, and whether it was trained on them: its card says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from export.anomaly import data as nih
from export.bone_suppression.data import held_out
from export.bone_suppression.pairs import DataError, Found, find
from export.bone_suppression.reading import read_pair
from pacs_node.infer.cards import Card

Array = np.ndarray
#: Longer side of what is measured, in pixels.
SIDE = 1024
#: The field that a frontal radiograph shows along its longer side, where nothing says it, in mm.
FIELD_MM = 370.0
TITLES = {
    "des_szch": "SZCH dual energy",
    "jsrt_bse": "JSRT (algorithmic)",
    "des_gusarev": "Gusarev dual energy",
    "drr": "CT projections",
}


@dataclass(frozen=True)
class Case:
    """One pair. ``seen``: whether the model was trained on it, None if its card does not say."""

    found: Found
    seen: bool | None

    @property
    def source(self) -> str:
        """The folder that it lies in."""
        return self.found.name.split("/")[0]

    @property
    def name(self) -> str:
        """Source and file."""
        return self.found.name

    def read(self, side: int = SIDE) -> tuple[Array, Array]:
        """Radiograph and soft tissue (rows, columns) in [0, 1], the longer side of ``side`` pixels."""
        return read_fitted(self.found, side)


def read_fitted(found: Found, side: int = SIDE, tone: str = "own") -> tuple[Array, Array]:
    """Radiograph and soft tissue (rows, columns) in [0, 1], the longer side of ``side`` pixels."""
    read = read_pair(found, tone)
    return fitted(read.radiograph, side), fitted(read.soft_tissue, side)


def fitted(image: Array, side: int = SIDE) -> Array:
    """The image with its longer side at ``side`` pixels; by area when shrinking, linear when growing."""
    scale = side / max(image.shape)
    if scale == 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.clip(cv2.resize(image, size, interpolation=method), 0, 1)


def trained_on(card: Card, found: Found) -> bool | None:
    """By the card's ``[training.pairs]``; None if it has none."""
    if not card.training.pairs:
        return None
    source, _, key = found.name.partition("/")
    said = card.training.pairs.get(source, [])
    if said == "all":
        return True
    return not held_out(found.patient) if said == "split" else key in said


def folders(data: Path, runs: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Where pairs lie that are there: the project's own, its CT projections, and those of a site."""
    own = [data / "des_szch", data / "jsrt_bse", data / "des_gusarev", runs / "drr"]
    return [*(f for f in own if f.is_dir()), *more]


def cases(card: Card, where: Sequence[Path], most: int = 0) -> dict[str, list[Case]]:
    """Of each folder the pairs that the model has not seen, at most ``most`` if it is not 0, evenly chosen.

    Where it has seen all of them, those. Raises DataError if a folder holds no pairs.
    """
    found: dict[str, list[Case]] = {}
    for folder in where:
        findings = find(folder)
        if not findings.pairs:
            raise DataError(findings.defects)
        both = [Case(pair, trained_on(card, pair)) for pair in findings.pairs]
        chosen = [case for case in both if not case.seen] or both
        stride = max(1, len(chosen) / most) if most else 1
        found[folder.name] = [chosen[int(i * stride)] for i in range(int(len(chosen) / stride))]
    return found


def words(chosen: Sequence[Case]) -> str:
    """Whether these were trained on."""
    return {True: "yes", False: "no", None: "not said"}[chosen[0].seen]


def radiographs(data: Path) -> dict[str, list[nih.Record]]:
    """By view, frontal radiographs of patients in the test part of ChestX-ray14, in the order to take them.

    Bone suppression learns from its training part alone. One radiograph of each patient comes first, by name,
    then a second one, and so on. None where the set is not there.
    """
    if not (data / "nih_cxr14").is_dir():
        return {}
    by_name = sorted(nih.select(nih.read_records(data), "test"), key=lambda r: r.path.name)
    found: dict[str, list[nih.Record]] = {}
    for view in ("PA", "AP"):
        of_view = [record for record in by_name if record.view == view]
        seen: Counter[str] = Counter()
        turns = []
        for record in of_view:
            seen[record.patient] += 1
            turns.append(seen[record.patient])
        ordered = sorted(zip(turns, of_view, strict=True), key=lambda pair: pair[0])  # stays by name within
        found[view] = [record for _, record in ordered]
    return found
