"""The soft parts of the phantom's chest: body, lungs, heart, vessels, trachea, gas, nodules.

Lengths are mm in the detector plane: x from the midline to the image's right (the patient's left), y down from the
upper edge of the field. Proportions follow adult frontal radiographs; what varies between people is drawn from the
seed. Every map is a thickness along the beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pacs_node.phantom.shapes import Array, Grid, chord, curve, ellipsoid, tube

FIELD_MM = 400.0
LUNG_DENSITY = 0.26 / 1.06
"""Inflated lung parenchyma over soft tissue (0.26 g/cm3, ICRU 44)."""


@dataclass(frozen=True)
class Build:
    """What differs from one patient to the next; scales are about 1."""

    sex: str
    view: str
    age_years: float
    chest: float  # scale of the rib cage
    width: float  # further scale of its width
    girth: float  # scale of the soft tissue around it
    heart: float
    breath: float  # mm by which the diaphragm stands higher than at full inspiration
    shift: float  # mm by which the patient stands off centre
    tilt: float  # side difference of the shoulders, mm

    @classmethod
    def drawn(cls, rng: np.random.Generator, view: str, sex: str, age_years: float) -> Build:
        """A patient of this sex and age, as he or she is positioned for this view."""
        bedside = view == "AP"
        return cls(
            sex=sex,
            view=view,
            age_years=age_years,
            chest=(0.93 if sex == "F" else 1.0) * rng.normal(1, 0.025),
            width=rng.normal(1.0, 0.025),
            girth=float(np.clip(rng.normal(1.03 if bedside else 1.0, 0.1), 0.8, 1.3)),
            heart=rng.normal(1.0, 0.05) * (1.13 if bedside else 1.0) * (1 + 0.002 * max(age_years - 50, 0)),
            breath=max(0.0, rng.normal(18 if bedside else 4, 7)),
            shift=rng.normal(0, 5 if bedside else 2.5),
            tilt=rng.normal(0, 5 if bedside else 2),
        )


@dataclass(frozen=True)
class LungShape:
    """One lung as a half superellipsoid on a prism: rounded apex, straight flank."""

    side: int  # -1 image left (patient's right), +1 image right
    x: float
    y: float
    rx: float
    ry: float
    rz: float

    def inside(self, grid: Grid) -> Array:
        """1 on the axis of the lung, 0 on its outline, negative outside."""
        u = np.abs((grid.x - self.side * self.x) / self.rx) ** 2.4
        v = np.clip((self.y - grid.y) / self.ry, 0, None) ** 2.1
        return (1 - u - v).astype(np.float32)

    def lateral(self, y: float) -> float:
        """Distance of the outer lung edge from the midline at height ``y``."""
        v = max(0.0, (self.y - y) / self.ry) ** 2.1
        return self.x + self.rx * float(max(1 - v, 0.0)) ** (1 / 2.4)


@dataclass(frozen=True)
class Chest:
    """The soft-tissue thickness (cm-free: mm) maps of one patient on one grid."""

    body: Array  # the whole patient as if solid
    air: Array  # lung air, trachea, gas: what is to be taken away
    lung_mask: Array  # bool, the lung fields that a reader sees
    nodule_mask: Array  # bool
    thickness: Array  # of the lungs, for what must stay inside them


def lungs(build: Build, rng: np.random.Generator) -> tuple[LungShape, LungShape]:
    """The right (image left) and the left lung."""
    c, w = build.chest, build.chest * build.width
    return (
        LungShape(-1, 58 * w, 222 * c, 77 * w, 158 * c + rng.normal(0, 2), 74 * c),
        LungShape(+1, 59 * w, 222 * c, 76 * w, 157 * c + rng.normal(0, 2), 74 * c),
    )


def body(grid: Grid, build: Build, rng: np.random.Generator) -> Array:
    """Neck, shoulders, arms, trunk and breasts."""
    g, c, w = build.girth, build.chest, build.chest * build.width
    y, x = grid.y, grid.x
    flank = (149 + 16 * (g - 0.9) * 5) * w
    # Half width and half depth of the trunk by height: neck, trapezius slope, chest, waist.
    at = np.array([0, 30, 62, 100, 150, 210, 300, 400.0])
    half = np.array([57, 60, 92, flank * 0.98, flank, flank * 0.985, flank * 0.97, flank * 0.98])
    deep = np.array([56, 60, 72, 86, 99, 105, 108, 110.0]) * (0.55 + 0.45 * g) * c
    height = grid.y[:, 0]
    smooth = curve(np.column_stack([at, half, deep]), 200)
    width = np.interp(height, smooth[:, 0], smooth[:, 1]).astype(np.float32)[:, None]
    depth = np.interp(height, smooth[:, 0], smooth[:, 2]).astype(np.float32)[:, None]
    trunk = 2 * depth * chord(np.abs(x / width) ** 2.5)
    arms = grid.zeros()
    for side in (-1, 1):
        drop = side * build.tilt + (-6 if build.view == "AP" else 4)
        spread = 1.0 if build.view == "AP" else 1.05
        shoulder = curve(
            [
                (side * 20 * w, 40 + drop),
                (side * 75 * w, 66 + drop),
                (side * 128 * w, 92 + drop),
                (side * 166 * w * spread, 128 + drop),
                (side * 188 * w * spread, 190 + drop),
                (side * 205 * w * spread, 290 + drop),
                (side * 212 * w * spread, 420),
            ],
            40,
        )
        radius = np.interp(np.linspace(0, 1, 40), [0, 0.2, 0.4, 0.55, 0.75, 1], [30, 38, 46, 46, 36, 32]) * (0.6 + 0.4 * g)
        tube(arms, grid, shoulder, radius, 2 * radius * 1.15)
    # A union with rounded creases: where the two run together the thicker stays, and a little of the other.
    whole = np.maximum(trunk, arms) + 0.12 * np.minimum(trunk, arms)
    # Pectoral and latissimus muscles, then breasts.
    for side in (-1, 1):
        pectoral = ellipsoid(grid, (side * 100 * w, 128 * c), (66, 44, 11 * g), side * 32, 2.6)
        whole += pectoral * (0.55 if build.sex == "F" else 1.0)
        if build.sex == "F":
            size = float(np.clip(rng.normal(1.0, 0.16) * (0.6 + 0.4 * g), 0.65, 1.35))
            sag = 236 * c + 0.35 * max(build.age_years - 30, 0)
            whole += ellipsoid(grid, (side * 80 * w, sag), (60 * size, 54 * size, 21 * size), side * 12, 2.2) * (
                1 - 0.55 / (1 + np.exp((y - sag + 10) / 14))
            )
    return whole.astype(np.float32)


def dome(grid: Grid, build: Build, lung: LungShape, rng: np.random.Generator) -> tuple[Array, Array]:
    """One half of the diaphragm: squared share of the depth that lies below it (q), and its thickness in the lung.

    The surface is a paraboloid: from its crest it falls to all sides, so that lung lies behind and in front of it
    and the costophrenic angle is the deepest point.
    """
    crest = (278 if lung.side < 0 else 289) * build.chest - build.breath + rng.normal(0, 2)
    centre = lung.side * (62 if lung.side < 0 else 64) * build.chest * build.width
    reach = 74 * build.chest * build.width
    u = (grid.x - centre) / reach
    fall = 42 * build.chest
    outer = np.where(grid.x * lung.side > centre * lung.side, 1.15, 0.42)
    ripple = 2.2 * np.sin(grid.x / 17 + rng.uniform(0, 6)) * 0.5
    q = (grid.y + ripple - crest) / fall - outer * u * u
    depth = 2 * lung.rz * np.sqrt(np.clip(q, 0, None)) * 1.25
    return q.astype(np.float32), depth.astype(np.float32)


def heart_and_mediastinum(grid: Grid, build: Build, rng: np.random.Generator) -> Array:
    """Thickness of heart, great vessels and mediastinal fat (their union)."""
    h, c = build.heart, build.chest
    old = max(build.age_years - 45, 0) / 40
    wide = 1.12 if build.view == "AP" else 1.0
    base = 286 * c - build.breath
    parts = [
        ellipsoid(grid, (28 * h, base - 52 * h), (46 * h, 66 * h, 48 * h), -37 + rng.normal(0, 4), 2.15),
        ellipsoid(grid, (-8 * h, base - 50 * h), (42 * h, 55 * h, 44 * h), 6, 2.2),
        ellipsoid(grid, (19 * c, 184 * c), (29 * h, 40 * c, 34), -14, 2.2),
        ellipsoid(grid, (23 * c * wide, (122 - 5 * old) * c), ((16 + 6 * old) * wide, 19 * c, 22 + 4 * old)),
        ellipsoid(grid, (24 * c * wide, 151 * c), (18 * wide, 19 * c, 22)),
    ]
    union = grid.zeros()
    for part in parts:
        np.maximum(union, part, out=union)
    column = curve(
        [(0, -20, 44, 40), (0, 60, 36, 44), (-3, 100, 30, 48), (-4, 140, 32, 60), (-2, 190, 35, 66), (0, 260, 38, 70), (0, 420, 42, 76)],
        40,
    )
    tube(union, grid, column[:, :2] * (c, c), column[:, 2] * c * (0.6 + 0.4 * wide), 2 * column[:, 3] * c)
    aorta = curve([(20, 120), (27 + 5 * old, 150), (25 + 6 * old, 200), (18 + 5 * old, 260), (10, 330)], 24) * c
    extra = grid.zeros()
    tube(extra, grid, aorta, 12 + 3 * old)
    cava = curve([(-24, 70), (-27, 110), (-27, 150), (-22, 190)], 16) * c
    tube(extra, grid, cava, 10 * wide)
    return np.maximum(union, extra) + 0.25 * np.minimum(union, extra)


def vessel_tree(target: Array, grid: Grid, lung: LungShape, crest: float, rng: np.random.Generator) -> None:
    """Pulmonary arteries and veins of one lung, branching from the hilum to sub-millimetre twigs.

    Radii obey Murray's law (r^3 = r1^3 + r2^3, J Gen Physiol 1926); a branch is about nine radii long at the hilum, longer
    in proportion further out.
    """
    hilum = np.array([lung.side * 36.0, 166.0 if lung.side < 0 else 157.0])
    queue: list[tuple[np.ndarray, float, float, float]] = []
    for zone in np.linspace(-82, 84, 10):
        angle = zone + rng.normal(0, 7)
        radius = rng.uniform(2.1, 2.9) * (0.8 + 0.35 * (angle + 80) / 160)  # gravity: wider below
        root = hilum + (rng.normal(0, 4) + lung.side * 4, rng.normal(0, 6) + 0.12 * zone)
        queue.append((root, angle, radius, rng.uniform(0.75, 1.0)))
    interlobar = curve([hilum, hilum + (lung.side * 9, 24), hilum + (lung.side * 15, 52)], 10)
    tube(target, grid, interlobar, np.linspace(7.5, 4.5, 10))
    for zone in (20, 45, 68):
        queue.append((interlobar[rng.integers(4, 10)], zone + rng.normal(0, 6), 2.6, 0.95))
    while queue:
        start, angle, radius, flat = queue.pop()
        length = (7.0 + 9.0 * radius) * rng.uniform(0.7, 1.3) * flat
        bend = rng.normal(0, 9)
        steps = 4 if radius > 1 else 3
        points = [start]
        for i in range(steps):
            at = np.deg2rad(angle + bend * (i + 1) / steps)
            points.append(points[-1] + length / steps * np.array([lung.side * np.cos(at), np.sin(at)]))
        end = points[-1]
        beyond = abs((end[0] - lung.side * lung.x) / lung.rx) ** 2.4 + max(0, (lung.y - end[1]) / lung.ry) ** 2.1
        tube(target, grid, points, np.linspace(radius, radius * 0.9, steps + 1))
        if beyond > 0.93 or end[1] > crest + 25 or end[0] * lung.side < 18:
            continue
        share = rng.uniform(0.35, 0.65)
        for part, turn in ((share, 1), (1 - share, -1)):
            child = 0.9 * radius * float(part) ** (1 / 3)
            if child > 0.42:
                spread = turn * rng.uniform(14, 40) * (1 - 0.5 * float(part))
                queue.append((end, angle + bend + spread, child, float(np.clip(flat * rng.normal(1, 0.12), 0.4, 1))))


def texture(grid: Grid, rng: np.random.Generator, scales_mm: tuple[float, ...]) -> Array:
    """Smooth random field with zero mean and unit spread: octaves of value noise at fixed scales, any matrix size."""
    out = grid.zeros()
    for scale in scales_mm:
        n = max(4, round(grid.field / scale))
        coarse = rng.standard_normal((n, n), dtype=np.float32)
        out += cv2.resize(coarse, (grid.size, grid.size), interpolation=cv2.INTER_CUBIC)
    return out / np.float32(np.sqrt(len(scales_mm)) * 0.75)


def chest(grid: Grid, build: Build, pair: tuple[LungShape, LungShape], nodules: int, rng: np.random.Generator) -> Chest:
    """Everything soft, with the air that is missing from it."""
    whole = body(grid, build, rng)
    core = heart_and_mediastinum(grid, build, rng)
    lung_total, silhouette = grid.zeros(), grid.zeros().astype(bool)
    vessels = grid.zeros()
    for lung in pair:
        inside = lung.inside(grid)
        cage = 2 * lung.rz * np.sqrt(np.clip(inside, 0, None))
        q, below = dome(grid, build, lung, rng)
        half = np.where(grid.x * lung.side > 0, 1, 0).astype(np.float32)
        air_space = np.clip(cage - np.minimum(below, cage), 0, None) * half
        blocked = np.minimum(core, air_space)
        lung_total += air_space - blocked
        silhouette |= (cage * half > 12) & (q < 0) & (core < 0.55 * air_space)
        crest = (278 if lung.side < 0 else 289) * build.chest - build.breath
        vessel_tree(vessels, grid, lung, crest, rng)
    grain = texture(grid, rng, (26, 11)) * 0.05 + texture(grid, rng, (4.5, 2.2)) * 0.045
    air = lung_total * (1 - LUNG_DENSITY * (1 + grain))
    air -= np.minimum(vessels, lung_total) * (1 - LUNG_DENSITY)
    nodule_mask = np.zeros(whole.shape, bool)
    ys, xs = np.nonzero(silhouette)
    for _ in range(nodules):
        at = rng.integers(0, len(ys))
        centre = (float(grid.x[0, xs[at]]), float(grid.y[ys[at], 0]))
        radius = rng.uniform(5, 13)
        lump = grid.zeros()
        for _ in range(5):
            offset = rng.normal(0, 0.22 * radius, 2)
            lobe = radius * rng.uniform(0.7, 1.0)
            np.maximum(
                lump,
                ellipsoid(grid, (centre[0] + offset[0], centre[1] + offset[1]), (lobe, lobe * 0.92, lobe), rng.uniform(0, 90)),
                out=lump,
            )
        nodule_mask |= lump > 0
        air -= np.minimum(lump, np.maximum(air, 0)) * (1 - LUNG_DENSITY)
    gas = grid.zeros()
    tube(gas, grid, curve([(0, -10), (0, 60), (-3, 110), (-2, 148)], 16) * build.chest, 8.5)
    tube(gas, grid, np.array([(-2, 146), (-18, 164), (-34, 176)]) * build.chest, 6.5)
    tube(gas, grid, np.array([(-2, 146), (22, 166), (38, 174)]) * build.chest, 5.5)
    gas *= 1 / (1 + np.exp((grid.y - 168 * build.chest) / 8))
    if rng.random() < 0.75:  # air in the stomach, its lower edge a fluid level in the upright patient
        level = 322 * build.chest - build.breath + rng.normal(0, 4)
        bubble = ellipsoid(grid, (rng.normal(66, 8), level - 4), (rng.uniform(18, 34), rng.uniform(10, 17), rng.uniform(9, 22)), -8)
        gas += bubble if build.view == "AP" else bubble / (1 + np.exp((grid.y - level) / 0.8))
    for _ in range(int(rng.integers(0, 4))):
        spot = (rng.uniform(-110, 120), rng.uniform(345, 390))
        gas += ellipsoid(grid, spot, (rng.uniform(8, 22), rng.uniform(6, 13), rng.uniform(5, 12)), rng.uniform(-40, 40))
    whole = whole * (1 + 0.012 * texture(grid, rng, (40, 18, 8)))
    air = np.clip(air + gas, 0, 0.93 * whole)
    return Chest(whole.astype(np.float32), air.astype(np.float32), silhouette, nodule_mask & silhouette, lung_total)
