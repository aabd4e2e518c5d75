"""What stays as it was: the power spectrum of lung texture, and everything that is not bone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from export.bone_suppression.evaluation.cases import FIELD_MM, TITLES, Array, Case, words
from export.bone_suppression.evaluation.lungs import lungs
from export.bone_suppression.evaluation.nodules import bones_of
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.pictures import sheet
from export.bone_suppression.evaluation.statistics import shown, summary, table
from pacs_node.phantom import Phantom
from pacs_node.phantom.anatomy import FIELD_MM as PHANTOM_MM

#: Side of the patches of texture in pixels, and the bands in cycles/mm.
PATCH, BANDS = 32, ((0.08, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.3))
#: Share of bone that a patch away from bones has at most, and of lung that any has at least.
BARE, INSIDE = 0.05, 0.98
#: Phantoms, and pairs of a source at most; how far from any bone "outside" begins, in mm.
PHANTOMS, USUAL, AWAY_MM = 8, 16, 4.0
#: Seeds that no training draws phantoms of.
FIRST_SEED = 10_000
#: What counts as no bone in the truth of a pair, in grey values.
NO_BONE = 0.004
NOTE = """\
Power after over power before in patches of 32 x 32 px (12 mm) of the lungs, Hann window, by spatial
frequency; "between": patches with bones on less than 5% of them, where nothing should change (1 is
unchanged)."""
OUTSIDE = """\
Grey values taken away (the range is 1; none can be added, as the bone image is limited to 0 and above:
largest value added in all of this: {added:.1g}) where there is no bone within 4 mm. Phantom: bones known
exactly, of seeds that training does not draw; the truth itself takes away what its tone curve spreads.
JSRT: where the algorithmic truth changes less than 0.4%."""


def spectrum(patch: Array, pitch: float) -> Array:
    """Power in each of BANDS (n, n) -> (bands,), its plane taken off."""
    side = patch.shape[0]
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    plane = np.stack([np.ones(side * side), y.ravel(), x.ravel()], axis=1)
    flat = patch.ravel() - plane @ (np.linalg.pinv(plane) @ patch.ravel())
    window = np.hanning(side + 2)[1:-1]
    power = np.abs(np.fft.fft2(flat.reshape(side, side) * np.outer(window, window))) ** 2
    axis = np.fft.fftfreq(side, pitch)
    radius = np.hypot(axis[:, None], axis)
    return np.array([power[(radius >= low) & (radius < high)].sum() for low, high in BANDS])


def ratios(
    image: Array, result: Array, inside: Array, bones: Array, pitch: float
) -> tuple[Array | None, Array | None]:
    """Power after over before by band: between bones, and in all of the lungs; None without such patches."""
    sums = {True: np.zeros((2, len(BANDS))), False: np.zeros((2, len(BANDS)))}
    for top in range(0, image.shape[0] - PATCH + 1, PATCH // 2):
        for left in range(0, image.shape[1] - PATCH + 1, PATCH // 2):
            part = np.s_[top : top + PATCH, left : left + PATCH]
            if inside[part].mean() < INSIDE:
                continue
            both = np.stack([spectrum(i[part].astype(np.float64), pitch) for i in (image, result)])
            sums[False] += both
            if bones[part].mean() <= BARE:
                sums[True] += both
    return tuple(s[1] / s[0] if s.any() else None for s in (sums[True], sums[False]))  # type: ignore[return-value]


def far(bone: Array, pitch: float) -> Array:
    """Where no bone is within AWAY_MM."""
    side = 2 * round(AWAY_MM / pitch) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(bone.astype(np.uint8), kernel) == 0)


def change(taken: Array) -> dict[str, float]:
    """Mean and high percentiles of what was taken away, in percent of the grey range."""
    return {
        "mean": round(100 * float(taken.mean()), 3),
        "percentile_95": round(100 * float(np.percentile(taken, 95)), 2),
        "percentile_99_9": round(100 * float(np.percentile(taken, 99.9)), 2),
        "largest": round(100 * float(taken.max()), 2),
    }


def phantoms(bench: Bench) -> tuple[dict[str, dict[str, float]], list[list[tuple[Array, str]]], float]:
    """What is taken away from phantoms outside bones and on ribs in the lungs; pictures; most added."""
    taken: dict[str, list[Array]] = defaultdict(list)
    rows, added = [], 0.0
    for number in range(min(PHANTOMS, bench.most or PHANTOMS)):
        patient = Phantom(FIRST_SEED + number, ("PA", "AP")[number % 2], "MF"[number // 2 % 2])
        size = 1024
        images, thickness = patient.render(size), patient.thickness(size)
        result = bench.suppress(images.radiograph).image
        bone = thickness.bone > 1e-4
        outside = far(bone, PHANTOM_MM / size) & (thickness.soft > 1)
        less = images.radiograph - result
        added = max(added, float(-less.min()))
        taken["phantom, outside"].append(less[outside])
        taken["phantom, outside, truth"].append(np.abs(images.bone[outside]))
        taken["phantom, outside in the lungs"].append(less[outside & images.lung_mask])
        taken["phantom, ribs in the lungs"].append(less[images.rib_mask & images.lung_mask])
        taken["phantom, ribs in the lungs, truth"].append(images.bone[images.rib_mask & images.lung_mask])
        if number < 3:
            rows.append(
                [
                    (images.radiograph, f"phantom {patient.view}"),
                    (result, "ours"),
                    (images.soft_tissue, "truth"),
                    (np.where(outside, 5 * less, 0), "taken outside bones, x5"),
                ]
            )
    return {key: change(np.concatenate(values)) for key, values in taken.items()}, rows, added


def outside_of_pair(image: Array, truth: Array, less: Array, pitch: float) -> Array:
    """What is taken where the pair's truth is as the radiograph, and the image is not black."""
    smooth = cv2.GaussianBlur(np.abs(image - truth), (0, 0), 0.5 / pitch)
    return np.asarray(less[far(smooth > NO_BONE, pitch) & (image > 0.05)])


def run(bench: Bench) -> Part:
    """Spectra on pairs, changes outside bones on phantoms and JSRT."""
    outside, rows, added = phantoms(bench)
    figures: dict[str, Any] = {}
    lines = []
    jsrt = []
    for source, cases in bench.cases(USUAL).items():
        between: list[tuple[Case, Array]] = []
        everywhere: list[tuple[Case, Array]] = []
        for case in cases:
            image, truth = case.read()
            inside = lungs(truth)
            if inside is None:
                continue
            pitch = FIELD_MM / max(image.shape)
            result = bench.suppress(image).image
            added = max(added, float((result - image).max()))
            found = ratios(image, result, inside, bones_of(image, truth, inside, pitch), pitch)
            for group, ratio in zip((between, everywhere), found, strict=True):
                if ratio is not None:
                    group.append((case, ratio))
            if source == "jsrt_bse":
                jsrt.append(outside_of_pair(image, truth, image - result, pitch))
        figures[source] = {"trained_on": words(cases)}
        for name, group in (("between", between), ("all", everywhere)):
            if group:
                lines.append(line(source, name, cases, group, figures[source]))
    if jsrt:
        outside["JSRT, outside"] = change(np.concatenate(jsrt))
    figures["outside_bones_percent"] = outside
    heads = ["source", "patches", "pairs", "trained on", *(f"{a:g} to {b:g} / mm" for a, b in BANDS)]
    places = [[name, *found.values()] for name, found in outside.items()]
    percent = table(["taken away, %", "mean", "95th percentile", "99.9th percentile", "largest"], places)
    text = f"{NOTE}\n\n{table(heads, lines)}\n\n{OUTSIDE.format(added=max(added, 0.0))}\n\n{percent}"
    return Part(
        "Texture and what is not bone",
        text,
        figures,
        [sheet(bench.out / "texture-phantom.png", rows, 480)] if rows else [],
    )


def line(
    source: str, name: str, cases: Sequence[Case], group: list[tuple[Case, Array]], figures: dict[str, Any]
) -> list[Any]:
    """One row of the table; its figures go into ``figures``."""
    patients = [case.found.patient for case, _ in group]
    cells: list[Any] = [TITLES.get(source, source), name, len(group), words(cases)]
    for number, (low, high) in enumerate(BANDS):
        key = f"{name}_{low:g}_to_{high:g}"
        found = summary(key, [float(ratio[number]) for _, ratio in group], patients, 3)
        figures |= found
        cells.append(shown(found, key, 3))
    return cells
