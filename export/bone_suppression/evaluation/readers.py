"""Ribs left in the lungs, without a radiologist: energy across ribs, of their shadows and of their edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from export.anomaly.data import Record
from export.bone_suppression.data import LEVELS
from export.bone_suppression.evaluation.cases import FIELD_MM, TITLES, Array, fitted, radiographs, words
from export.bone_suppression.evaluation.lungs import lungs
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.pictures import sheet
from export.bone_suppression.evaluation.statistics import interval, table

#: What is looked for: periods in mm, and the image's longer side in pixels.
SCALES = {"shadows": ((16.0, 22.0, 30.0), 256), "edges": ((4.0, 6.0), 512)}
#: Angles of the ribs' normal to the vertical, and of the control, in degrees.
ACROSS, CONTROL = (-50.0, -25.0, 0.0, 25.0, 50.0), (75.0, 90.0, 105.0)
PER_VIEW, WORST, USUAL = 50, 10, 16
NOTE = """\
Energy of waves in the lungs whose normals lie within 50 degrees of the vertical, as ribs run (Gabor
filters, two phases): shadows, with periods of 16, 22 and 30 mm, and edges, of 4 and 6 mm. Left: after
suppression over before, median [95%, bootstrap over patients]; beside it what the pair's truth leaves,
since vessels and other soft tissue run that way too. The control are shadows along the body's axis, which
ribs do not make. ChestX-ray14: {count} radiographs, of patients that no training of bone suppression saw;
no lung fields were found in {lost} others, which are left out."""


@dataclass(frozen=True)
class Reading:
    """One image: energies before, after and of the truth if there is one, in units of its grey values from
    lung to white, squared.
    """

    name: str
    patient: str
    before: dict[str, float]
    after: dict[str, float]
    truth: dict[str, float] | None = None

    def left(self, key: str) -> float:
        """After over before."""
        return self.after[key] / self.before[key]


@lru_cache(maxsize=64)
def gabor(period: float, angle: float) -> tuple[Array, Array]:
    """Cosine and sine filter without mean; each gives a wave of amplitude 1 that it fits a response of 1.

    ``period`` in pixels; ``angle`` of the wave's normal to the vertical.
    """
    sigma = 0.45 * period
    half = int(np.ceil(2.5 * sigma))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    bell = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    phase = 2 * np.pi / period * (y * np.cos(np.radians(angle)) + x * np.sin(np.radians(angle)))
    both = []
    for wave in (np.cos(phase), np.sin(phase)):
        kernel = bell * (wave - (bell * wave).sum() / bell.sum())
        both.append((kernel / (kernel * wave).sum()).astype(np.float32))
    return both[0], both[1]


def energies(image: Array, inside: Array, span: float) -> dict[str, float]:
    """Mean squared amplitude of each scale in the lungs ``inside``, and of the control."""
    found: dict[str, float] = {}
    for scale, (periods, side) in SCALES.items():
        small = fitted(image, side)
        mask = cv2.resize(inside.astype(np.float32), small.shape[::-1], interpolation=cv2.INTER_AREA)
        pitch = FIELD_MM / side
        # What surrounds the lungs must not ring into them: their own local mean is taken off, the rest is 0.
        wide = 0.6 * max(periods) / pitch
        weight = cv2.GaussianBlur(mask, (0, 0), wide) + 1e-6
        flat = (small - cv2.GaussianBlur(small * mask, (0, 0), wide) / weight) * mask / span
        inner = cv2.erode((mask > 0.5).astype(np.uint8), np.ones((3, 3))) > 0
        for name, angles in ((scale, ACROSS), ("control", CONTROL)):
            if name == "control" and scale != "shadows":
                continue
            squares = [
                np.square(cv2.filter2D(flat, cv2.CV_32F, kernel, borderType=cv2.BORDER_CONSTANT))[
                    inner
                ].mean()
                for period in periods
                for angle in angles
                for kernel in gabor(period / pitch, angle)
            ]
            found[name] = float(np.mean(squares))
    return found


def span_of(image: Array, inside: Array) -> float:
    """Grey values from the lungs to white."""
    return max(float(np.percentile(image, 98) - np.median(image[inside])), 1 / LEVELS)


def read(
    bench: Bench, name: str, patient: str, image: Array, field: Array, truth: Array | None
) -> Reading | None:
    """Of one image whose lungs are looked for in ``field``; None if they are not found."""
    inside = lungs(field)
    if inside is None:
        return None
    span = span_of(image, inside)
    after = energies(bench.suppress(image).image, inside, span)
    known = None if truth is None else energies(truth, inside, span)
    return Reading(name, patient, energies(image, inside, span), after, known)


def grey(record: Record) -> Array:
    """A radiograph of ChestX-ray14, [0, 1]."""
    image: Array = cv2.imread(str(record.path), cv2.IMREAD_GRAYSCALE)
    return fitted(image.astype(np.float32) / 255)


def figures_of(found: Sequence[Reading], seen: str) -> dict[str, Any]:
    """Medians over images, of what is left and of what the truth leaves."""
    figures: dict[str, Any] = {"images": len(found), "trained_on": seen}
    patients = [r.patient for r in found]
    for key in (*SCALES, "control"):
        left = [r.left(key) for r in found]
        figures[f"{key}_left"] = round(float(np.median(left)), 3)
        if key == "control":
            continue
        if between := interval(left, patients, lambda v: float(np.median(v))):
            figures[f"{key}_left_95"] = [round(v, 3) for v in between]
        truths = [r.truth[key] / r.before[key] for r in found if r.truth]
        if truths:
            figures[f"{key}_left_of_truth"] = round(float(np.median(truths)), 3)
    return figures


def row(title: str, found: dict[str, Any]) -> list[Any]:
    """Of the table."""
    cells: list[Any] = [title, found["images"], found["trained_on"]]
    for key in SCALES:
        between = found.get(f"{key}_left_95")
        said = f"{found[f'{key}_left']:.3f}" + (f" [{between[0]:.3f}, {between[1]:.3f}]" if between else "")
        cells += [said, found.get(f"{key}_left_of_truth", "")]
    return [*cells, found["control_left"]]


def run(bench: Bench) -> Part:
    """On pairs, beside their truth, and on unseen radiographs of both views; shows the ten worst of these."""
    figures: dict[str, Any] = {}
    lines = []
    for source, cases in bench.cases(USUAL).items():
        found = []
        for case in cases:
            image, truth = case.read()
            found.append(read(bench, case.name, case.found.patient, image, truth, truth))
        if kept := [r for r in found if r]:
            figures[source] = figures_of(kept, words(cases))
            lines.append(row(TITLES.get(source, source), figures[source]))
    unseen, lost = [], 0
    for view, records in radiographs(bench.data).items():
        of_view: list[Reading] = []
        for record in records:
            if len(of_view) == (bench.most or PER_VIEW):
                break
            image = grey(record)
            reading = read(bench, record.path.stem, record.patient, image, image, None)
            lost += reading is None
            if reading:
                of_view.append(reading)
                unseen.append((record, reading))
        if of_view:
            figures[f"nih_cxr14_{view}"] = figures_of(of_view, "no")
            lines.append(row(f"ChestX-ray14, {view}", figures[f"nih_cxr14_{view}"]))
    heads = ["source", "images", "trained on", "shadows left", "of the truth", "edges left", "of the truth"]
    text = f"{NOTE.format(count=len(unseen), lost=lost)}\n\n{table([*heads, 'control left'], lines)}"
    worst = sorted(unseen, key=lambda u: -u[1].after["shadows"])[:WORST]
    tiles = [pictured(bench, record, reading) for record, reading in worst]
    rows = [[*tiles[i], *(tiles[i + 1] if i + 1 < len(tiles) else [])] for i in range(0, len(tiles), 2)]
    pictures = [sheet(bench.out / "readers-worst.png", rows, 400)] if rows else []
    return Part("Ribs left in the lungs", text, figures, pictures)


def pictured(bench: Bench, record: Record, reading: Reading) -> list[tuple[Array, str]]:
    """Original, ours, bones."""
    image = grey(record)
    ours = bench.suppress(image).image
    return [
        (image, f"{reading.name} {record.view}"),
        (ours, f"ours, {reading.left('shadows'):.0%} of shadows left"),
        (3 * (image - ours), "bones, x3"),
    ]
