"""How much contrast nodules keep: nodules of CT, projected into radiographs whose bones are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import SimpleITK

from export.bone_suppression.evaluation.cases import FIELD_MM, Array, Case
from export.bone_suppression.evaluation.lungs import lungs
from export.bone_suppression.evaluation.part import Bench, Part
from export.bone_suppression.evaluation.pictures import sheet
from export.bone_suppression.evaluation.statistics import interval, table
from export.bone_suppression.pairs import DataError, Defect
from pacs_node.phantom.physics import SOFT_G_CM3, mu

#: Diameters in mm, and contrasts relative to the physical one.
SIZES, CONTRASTS = (5.0, 10.0, 15.0, 20.0, 30.0), (0.5, 1.0, 2.0)
#: Effective energy of the beam in keV, and what scatter and mediastinum leave of -ln(I / I0) between the
#: lungs and the brightest of the thorax: it gives the grey values of one unit of attenuation.
ENERGY, LUNG_TO_WHITE = 60.0, 1.5
#: Sets of nodules for an image, nodules in a set, and pairs of a source at most.
SETS, TOGETHER, USUAL = 4, 4, 16
#: HU of what lies around a nodule, where the patch does not tell it; only darker voxels count as lung.
LUNG_HU, LUNG_BELOW = -850.0, -600.0
#: Shares of a nodule's disc that bones cover: up to the first it lies between them, from the second under.
BETWEEN, UNDER = 0.2, 0.6
WORST = 8
SEEN = {False: "not trained on", True: "trained on", None: "(trained on or not, the card does not say)"}
NOTE = """\
Nodules of {patches} CT patches, turned, scaled to a diameter of 5 to 30 mm and projected (density above
that of lung, Beer-Lambert at 60 keV, blur of 0.25 mm) into the lungs of {images} radiographs {seen},
{count} in all; grey values by the radiograph's own span from lung to white (1.5 in attenuation), times 0.5,
1 and 2. Contrast: mean over the disc where the nodule has over half of its height, less the mean of the
ring around it (0.7 to 1.5 radii), of the image with it less the image without it; kept: the same after
suppression over before. Under bones: 60% or more of the disc lies on the pair's own bones; between: 20% or
less. A field of 370 mm is taken for the longer side."""


@dataclass(frozen=True)
class Patch:
    """Density above lung (mm, mm, mm) at 1 mm, relative to water, and the diameter of its disc in mm."""

    density: Array
    diameter: float


@dataclass(frozen=True)
class Spot:
    """One nodule in an image: where, how large (mm), how strong, its grey values, its share on bones."""

    centre: tuple[int, int]
    diameter: float
    contrast: float
    signal: Array
    covered: float

    @property
    def position(self) -> str:
        """In words."""
        if self.covered <= BETWEEN:
            return "between bones"
        return "under bones" if self.covered >= UNDER else "across an edge"


@dataclass(frozen=True)
class Kept:
    """What one nodule lost. ``before`` and ``after`` are crops of the images, ``signal`` and ``left`` of what
    the nodule adds to them.
    """

    spot: Spot
    patient: str
    name: str
    share: float
    before: Array
    after: Array
    signal: Array
    left: Array


def read_patches(folder: Path) -> list[Patch]:
    """All CT nodules of ``folder``. Raises DataError if there are none."""
    found = []
    for path in sorted(folder.glob("*_dcm_*.mha")):
        hu = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
        mask_path = path.with_name(path.name.replace("_dcm_", "_seg_"))
        mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(mask_path))) > 0
        if mask.sum() < 30:
            continue
        around = hu[~mask & (hu < LUNG_BELOW)]
        lung = float(np.median(around)) if around.size > 100 else LUNG_HU
        soft = np.stack([cv2.GaussianBlur(s.astype(np.float32), (0, 0), 0.7) for s in mask])
        found.append(
            Patch(np.clip((hu - lung) / 1000, 0, 1.1) * soft, 2 * (3 * mask.sum() / 4 / np.pi) ** (1 / 3))
        )
    if not found:
        raise DataError(
            [
                Defect(
                    str(folder),
                    "holds no *_dcm_*.mha with their *_seg_*.mha",
                    "Give --data with nodule_ct_patches",
                )
            ]
        )
    return found


@lru_cache(maxsize=1)
def water_per_cm() -> float:
    """Linear attenuation of soft tissue of density 1."""
    return mu(ENERGY)[0] / SOFT_G_CM3


def projected(patch: Patch, diameter: float, pitch: float, rng: np.random.Generator) -> Array:
    """-ln(I / I0) that the nodule adds, (n, n) at ``pitch`` mm, scaled to ``diameter`` mm and turned."""
    scale = diameter / patch.diameter
    thickness = patch.density.sum(axis=int(rng.integers(3))) * scale / 10
    side = int(np.ceil(max(thickness.shape) * scale / pitch)) | 1
    turn = cv2.getRotationMatrix2D((0, 0), float(rng.uniform(0, 360)), scale / pitch)
    middle = (np.array(thickness.shape[::-1]) - 1) / 2
    turn[:, 2] = (side - 1) / 2 - turn[:, :2] @ middle
    large = cv2.warpAffine(thickness, turn, (side, side), flags=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(np.maximum(large, 0), (0, 0), 0.25 / pitch)
    return np.asarray(blurred * water_per_cm(), np.float32)


def gain(image: Array, inside: Array) -> float:
    """Grey values of one unit of attenuation, by the image's own span from lung to white."""
    return float((np.percentile(image, 98) - np.median(image[inside])) / LUNG_TO_WHITE)


def bones_of(image: Array, truth: Array, inside: Array, pitch: float) -> Array:
    """Where the pair's own bones lie, bool: their fine part, over Otsu's threshold in the lungs."""
    bone = cv2.GaussianBlur(image - truth, (0, 0), 1.0 / pitch)
    fine = bone - cv2.GaussianBlur(bone, (0, 0), 20 / pitch)
    low, high = np.percentile(fine[inside], (1, 99))
    levels = np.clip((fine - low) / max(high - low, 1e-6), 0, 1)
    otsu, _ = cv2.threshold(
        np.round(levels[inside] * 255).astype(np.uint8)[:, None], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU
    )
    return np.asarray(levels > otsu / 255)


def put(image: Array, signal: Array, centre: tuple[int, int]) -> Array:
    """An image of zeros like ``image`` with the signal at its place, cut off at the border."""
    whole = np.zeros_like(image)
    half = signal.shape[0] // 2
    top, left = centre[0] - half, centre[1] - half
    rows = slice(max(top, 0), min(top + signal.shape[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + signal.shape[1], image.shape[1]))
    whole[rows, columns] = signal[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return whole


def contrast(change: Array, signal: Array) -> float:
    """Mean over the nodule's disc less the mean over the ring of 0.7 to 1.5 of its radius around it."""
    disc = signal > 0.5 * signal.max()
    radius = float(np.sqrt(disc.sum() / np.pi))
    away = cv2.distanceTransform(1 - disc.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring = (away > 0.7 * radius) & (away <= 1.5 * radius + 1)
    return float(change[disc].mean() - change[ring].mean())


def draw(
    image: Array, truth: Array, inside: Array, patches: Sequence[Patch], rng: np.random.Generator, number: int
) -> list[Spot]:
    """One set of nodules in the lungs, far from each other, their middles under bones as often as between."""
    pitch = FIELD_MM / max(image.shape)
    bones = bones_of(image, truth, inside, pitch)
    strength = gain(image, inside)
    spots: list[Spot] = []
    places = np.argwhere(inside)
    # Counted on through all sets, so that sizes, contrasts and positions are not tied to each other.
    for serial in range(number * TOGETHER, (number + 1) * TOGETHER):
        diameter, times = SIZES[serial % len(SIZES)], CONTRASTS[serial // 3 % len(CONTRASTS)]
        alike = [p for p in patches if 0.4 < p.diameter / diameter < 1.6] or list(patches)
        signal = times * strength * projected(alike[int(rng.integers(len(alike)))], diameter, pitch, rng)
        found = []
        for row, column in rng.permutation(places)[:60]:
            centre = int(row), int(column)
            far = all(np.hypot(*np.subtract(centre, s.centre)) > 70 / pitch for s in spots)
            whole = put(image, signal, centre)
            if far and whole.max() == signal.max():
                covered = float(bones[whole > 0.5 * whole.max()].mean())
                found.append(Spot(centre, diameter, times, whole, covered))
        if found:
            found.sort(key=lambda s: s.covered)
            # A third under bones, a third between, the rest wherever it falls.
            spots.append(found[(-1, 0, len(found) // 2)[serial % 3]])
    return spots


def compared(
    added: Array, result: Array, image: Array, plain: Array, spots: Sequence[Spot], case: Case
) -> list[Kept]:
    """What ``spots`` kept: an image with them and its result, and both without them."""
    pitch = FIELD_MM / max(image.shape)
    found = []
    for spot in spots:
        half = round((spot.diameter + 20) / pitch)
        row, column = spot.centre
        part = np.s_[max(row - half, 0) : row + half, max(column - half, 0) : column + half]
        # Copies: a view would keep the whole image, of each of hundreds of nodules.
        signal = spot.signal[part].copy()
        before, after = added[part] - image[part], result[part] - plain[part]
        given = contrast(before, signal)
        if given > 0.25 * contrast(signal, signal):  # else it was lost in white before any suppression
            share = contrast(after, signal) / given
            shown = added[part].copy(), result[part].copy()
            kept = Kept(
                replace(spot, signal=signal), case.found.patient, case.name, share, *shown, before, after
            )
            found.append(kept)
    return found


def measured(bench: Bench, chosen: Sequence[Case], patches: Sequence[Patch], sets: int) -> list[Kept]:
    """All nodules of all images."""
    found = []
    for number, case in enumerate(chosen):
        image, truth = case.read()
        inside = lungs(truth)
        if inside is None:
            continue
        plain = bench.suppress(image).image
        rng = np.random.default_rng(number)
        for again in range(sets):
            spots = draw(image, truth, inside, patches, rng, number * sets + again)
            added = np.clip(image + sum(spot.signal for spot in spots), 0, 1).astype(np.float32)
            found += compared(added, bench.suppress(added).image, image, plain, spots, case)
    return found


def group(found: Sequence[Kept]) -> dict[str, Any]:
    """Median with its interval, 5th percentile, and the share of those that keep 90%."""
    shares = [k.share for k in found]
    between = interval(shares, [k.patient for k in found], lambda v: float(np.median(v)))
    return {
        "nodules": len(found),
        "median": round(float(np.median(shares)), 3),
        **({"median_95": [round(v, 3) for v in between]} if between else {}),
        "percentile_5": round(float(np.percentile(shares, 5)), 3),
        "keep_90": round(float(np.mean(np.array(shares) >= 0.9)), 3),
    }


def run(bench: Bench) -> Part:
    """Measures by position, diameter, contrast and source; shows those that lost most."""
    patches = read_patches(bench.data / "nodule_ct_patches")
    every = bench.cases(USUAL)
    both = [case for cases in every.values() for case in cases]
    chosen = [case for case in both if not case.seen] or both
    found = measured(bench, chosen, patches, SETS)
    groups: dict[str, list[Kept]] = {"all": found}
    for kept in found:
        source = kept.name.split("/")[0]
        for key in (
            kept.spot.position,
            f"{kept.spot.diameter:g} mm",
            f"contrast x {kept.spot.contrast:g}",
            f"in {source}",
        ):
            groups.setdefault(key, []).append(kept)
    ordered = ["all", *sorted((k for k in groups if k != "all"), key=order)]
    figures = {key: group(groups[key]) for key in ordered}
    rows = [
        [
            key,
            f["nodules"],
            f"{f['median']:.1%}"
            + (f" [{f['median_95'][0]:.1%}, {f['median_95'][1]:.1%}]" if "median_95" in f else ""),
            f"{f['percentile_5']:.1%}",
            f"{f['keep_90']:.0%}",
        ]
        for key, f in figures.items()
    ]
    heads = ["nodules", "number", "contrast kept, median [95%]", "5th percentile", "keep 90% or more"]
    note = NOTE.format(
        patches=len(patches), images=len({k.name for k in found}), count=len(found), seen=SEEN[chosen[0].seen]
    )
    worst = sorted(found, key=lambda k: k.share)[:WORST]
    picture = sheet(bench.out / "nodules-worst.png", [pictured(k) for k in worst], 320)
    return Part("Nodules", f"{note}\n\n{table(heads, rows)}", figures, [picture])


def order(key: str) -> tuple[int, float, str]:
    """Positions, diameters, contrasts, sources."""
    if key.endswith(" mm"):
        return 1, float(key.split()[0]), key
    return (2 if key.startswith("contrast") else 3 if key.startswith("in ") else 0), 0.0, key


def pictured(kept: Kept) -> list[tuple[Array, str]]:
    """With the nodule before and after, and what the nodule adds before and after."""
    top = max(float(kept.signal.max()), 1e-6)
    low, high = float(kept.before.min()), max(float(kept.before.max()), 1e-3)
    words = f"{kept.spot.diameter:g} mm x{kept.spot.contrast:g} {kept.spot.position}"
    return [
        ((kept.before - low) / (high - low), f"{kept.name} {words}"),
        ((kept.after - low) / (high - low), f"after, keeps {kept.share:.0%}"),
        (kept.signal / top, "the nodule alone"),
        (kept.left / top, "what is left of it"),
    ]
