"""The soft parts of the phantom's chest: body, lungs, heart, vessels, trachea, gas, nodules.

Lengths are mm in the detector plane: x from the midline to the image's right (the patient's left), y down
from the upper edge of the field. Proportions follow adult frontal radiographs; what varies between people is
drawn from the seed. Every map is a thickness along the beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pacs_node.phantom.shapes import Array, Grid, Mask, add_ellipsoid, chord, curve, ellipsoid, tube

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
            heart=rng.normal(1.0, 0.05) * (1.1 if bedside else 1.0) * (1 + 0.002 * max(age_years - 50, 0)),
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
        u = np.abs((grid.x - np.float32(self.side * self.x)) / np.float32(self.rx)) ** np.float32(2.3)
        v = np.maximum((np.float32(self.y) - grid.y) / np.float32(self.ry), 0) ** np.float32(2.1)
        return np.asarray(1 - u - v, np.float32)

    def lateral(self, y: float) -> float:
        """Distance of the outer lung edge from the midline at height ``y``."""
        v = max(0.0, (self.y - y) / self.ry) ** 2.1
        return float(self.x + self.rx * max(1 - v, 0.0) ** (1 / 2.3))


@dataclass(frozen=True)
class Chest:
    """The soft-tissue thickness maps (mm) of one patient on one grid, and masks."""

    body: Array  # the whole patient as if solid
    air: Array  # lung air, trachea, gas: what is to be taken away
    lung_mask: Mask  # the lung fields that a reader sees
    nodule_mask: Mask


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
    trunk = 2 * depth * chord(np.abs(x / width) ** 3.4)
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
        radius = np.interp(np.linspace(0, 1, 40), [0, 0.2, 0.4, 0.55, 0.75, 1], [30, 38, 46, 46, 36, 32]) * (
            0.6 + 0.4 * g
        )
        tube(arms, grid, shoulder, radius, 2 * radius * 1.15)
    # A union with rounded creases: where the two run together the thicker stays, and a little of the other.
    whole = np.maximum(trunk, arms) + 0.12 * np.minimum(trunk, arms)
    # Pectoral and latissimus muscles, then breasts.
    for side in (-1, 1):
        pectoral = mound(grid, (side * 104 * w, 130 * c), (72, 50, 13 * g), side * 34)
        whole += pectoral * (0.55 if build.sex == "F" else 1.0)
        if build.sex == "F":
            size = float(np.clip(rng.normal(1.0, 0.16) * (0.6 + 0.4 * g), 0.65, 1.35))
            sag = 236 * c + 0.35 * max(build.age_years - 30, 0)
            breast = ellipsoid(grid, (side * 82 * w, sag), (62 * size, 56 * size, 18 * size), side * 12, 2.2)
            soft_edge = mound(grid, (side * 82 * w, sag), (62 * size, 56 * size, 18 * size), side * 12)
            lower = 1 / (1 + np.exp((np.float32(sag + 12) - y) / np.float32(12)))
            whole += lower * breast + (1 - lower) * soft_edge
    return np.asarray(whole, np.float32)


def mound(
    grid: Grid, centre: tuple[float, float], radii: tuple[float, float, float], degrees: float = 0
) -> Array:
    """An ellipsoid that runs out softly, as muscle does: the cube of its profile, same greatest thickness."""
    unit = ellipsoid(grid, centre, (radii[0], radii[1], 0.5), degrees)
    return 2 * radii[2] * unit**3


def union(*bodies: Array) -> Array:
    """Thickness where bodies run into one another without a seam: the 4-norm, close to the larger of them."""
    total = np.zeros_like(bodies[0])
    for each in bodies:
        square = np.square(each * np.float32(0.01))
        total += square * square
    return np.sqrt(np.sqrt(total)) * np.float32(100)


def dome(grid: Grid, build: Build, lung: LungShape, rng: np.random.Generator) -> tuple[Array, Array]:
    """One half of the diaphragm: squared share of the depth below it (q), and its thickness in the lung.

    The surface is a paraboloid: from its crest it falls to all sides, so that lung lies behind and in
    front of it and the costophrenic angle is the deepest point.
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
    h, c = build.heart * build.chest, build.chest
    old = max(build.age_years - 45, 0) / 40
    wide = 1.12 if build.view == "AP" else 1.0
    base = 292 * c - build.breath
    parts = [
        ellipsoid(grid, (27 * h, base - 50 * h), (45 * h, 66 * h, 60 * h), -37 + rng.normal(0, 4), 2.15),
        ellipsoid(grid, (-8 * h, base - 50 * h), (41 * h, 57 * h, 56 * h), 6, 2.2),
        ellipsoid(grid, (16 * c, 186 * c), (29 * h, 46 * c, 46), -14, 2.2),
        ellipsoid(
            grid, (21 * c * wide, (122 - 5 * old) * c), ((17 + 6 * old) * wide, 20 * c, 34 + 4 * old), 0, 2.3
        ),
        ellipsoid(grid, (16 * c * wide, 160 * c), (22 * wide, 34 * c, 42), -8, 2.2),
    ]
    column = curve(
        [
            (0, -20, 40, 40),
            (0, 50, 36, 44),
            (-2, 84, 31, 50),
            (-4, 110, 30, 54),
            (-4, 140, 33, 60),
            (-2, 190, 36, 62),
            (0, 260, 40, 66),
            (0, 420, 60, 70),
        ],
        40,
    )
    pillar = grid.zeros()
    tube(pillar, grid, column[:, :2] * (c, c), column[:, 2] * c * (0.6 + 0.4 * wide), 2 * column[:, 3] * c)
    aorta = (
        curve([(20, 120), (25 + 5 * old, 150), (23 + 6 * old, 200), (16 + 5 * old, 260), (8, 330)], 24) * c
    )
    down = grid.zeros()
    tube(down, grid, aorta, 12 + 3 * old)
    cava = grid.zeros()
    tube(cava, grid, curve([(-22, 66), (-25, 110), (-26, 150), (-20, 195)], 16) * c, 10 * wide, 40)
    return union(*parts, pillar, cava, 1.5 * down)


def vessel_tree(
    target: Array, grid: Grid, lung: LungShape, crest: float, lower: float, rng: np.random.Generator
) -> None:
    """Pulmonary arteries and veins of one lung, branching from the hilum to sub-millimetre twigs.

    Radii obey Murray's law (r^3 = r1^3 + r2^3, J Gen Physiol 1926); a branch is about nine radii long at the
    hilum, longer in proportion further out. ``lower`` shifts the root down: the veins enter lower.
    """
    hilum = np.array([lung.side * 41.0, (164.0 if lung.side < 0 else 157.0) + lower])
    queue: list[tuple[np.ndarray, float, float, float]] = []
    for zone in np.linspace(-84, 86, 8):
        angle = zone + rng.normal(0, 7)
        radius = rng.uniform(2.6, 4.2) * (0.75 + 0.4 * (angle + 80) / 160)  # gravity: wider below
        root = hilum + np.array([rng.normal(0, 4), rng.normal(0, 6) + 0.12 * zone])
        queue.append((root, angle, radius, rng.uniform(0.75, 1.0)))
    interlobar = curve(
        [hilum, hilum + np.array([lung.side * 10, 24]), hilum + np.array([lung.side * 17, 56])], 10
    )
    if lower == 0:
        tube(target, grid, interlobar, np.linspace(8.5, 5.0, 10))
    for zone in (20, 45, 68):
        queue.append((interlobar[rng.integers(4, 10)], zone + rng.normal(0, 6), 3.2, 0.95))
    while queue:
        start, angle, radius, flat = queue.pop()
        length = (5.0 + 7.5 * radius) * rng.uniform(0.7, 1.3) * flat
        bend = rng.normal(0, 9)
        steps = 4 if radius > 1 else 3
        points = [start]
        for i in range(steps):
            at = np.deg2rad(angle + bend * (i + 1) / steps)
            points.append(points[-1] + length / steps * np.array([lung.side * np.cos(at), np.sin(at)]))
        end = points[-1]
        beyond = (
            abs((end[0] - lung.side * lung.x) / lung.rx) ** 2.3 + max(0, (lung.y - end[1]) / lung.ry) ** 2.1
        )
        tube(target, grid, points, np.linspace(radius, radius * 0.9, steps + 1))
        if beyond > 0.93 or end[1] > crest + 25 or end[0] * lung.side < 18:
            continue
        share = rng.uniform(0.35, 0.65)
        for part, turn in ((share, 1), (1 - share, -1)):
            child = radius * float(part) ** (1 / 3)
            if child > 0.5:
                spread = turn * rng.uniform(14, 40) * (1 - 0.5 * float(part))
                queue.append(
                    (end, angle + bend + spread, child, float(np.clip(flat * rng.normal(1, 0.12), 0.4, 1)))
                )


def texture(grid: Grid, rng: np.random.Generator, scales_mm: tuple[float, ...]) -> Array:
    """Smooth random field, mean 0, spread about 1: octaves of value noise, the same on any matrix size."""
    out = grid.zeros()
    for scale in scales_mm:
        n = max(4, round(grid.field / scale))
        coarse = rng.standard_normal((n, n), dtype=np.float32)
        out += cv2.resize(coarse, (grid.size, grid.size), interpolation=cv2.INTER_CUBIC)
    return out / np.float32(np.sqrt(len(scales_mm)) * 0.75)


def chest(
    grid: Grid, build: Build, pair: tuple[LungShape, LungShape], nodules: int, rng: np.random.Generator
) -> Chest:
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
        blocked = np.minimum(union(core, below), cage) * half
        lung_total += cage * half - blocked
        silhouette |= (cage * half > 12) & (q < 0) & (core < 0.55 * cage)
        crest = (278 if lung.side < 0 else 289) * build.chest - build.breath
        for spread in (0.0, 7.0):  # arteries and veins cross, and their shadows add
            layer = grid.zeros()
            vessel_tree(layer, grid, lung, crest, spread, rng)
            vessels += layer
    grain = texture(grid, rng, (26, 11)) * 0.06 + texture(grid, rng, (3.5, 1.8)) * 0.03
    air = lung_total * (1 - LUNG_DENSITY * (1 + grain))
    air -= np.minimum(vessels, lung_total) * (1 - LUNG_DENSITY)
    lumps = round_opacities(grid, silhouette, nodules, rng)
    air -= np.minimum(lumps, np.maximum(air, 0)) * (1 - LUNG_DENSITY)
    air += airways_and_gas(grid, build, rng)
    whole *= 1 + np.float32(0.007) * texture(grid, rng, (60, 25, 8))
    return Chest(whole, np.clip(air, 0, 0.93 * whole), silhouette, (lumps > 0) & silhouette)


def round_opacities(grid: Grid, where: Mask, number: int, rng: np.random.Generator) -> Array:
    """Nodules of 10 to 26 mm, slightly lobed, with their centres in ``where``."""
    total = grid.zeros()
    for _ in range(number):
        x, y = _point_in(grid, where, rng)
        radius = rng.uniform(5, 13)
        lump = grid.zeros()
        for _ in range(5):
            dx, dy = rng.normal(0, 0.22 * radius, 2)
            lobe = radius * rng.uniform(0.7, 1.0)
            part = ellipsoid(grid, (x + dx, y + dy), (lobe, 0.92 * lobe, lobe), rng.uniform(0, 90))
            np.maximum(lump, part, out=lump)
        total += lump
    return total


def _above(grid: Grid, y: float, width: float) -> Array:
    """1 above the height ``y``, 0 below, with a soft step between."""
    return np.asarray(0.5 - 0.5 * np.tanh((grid.y - y) / width), np.float32)


def _point_in(grid: Grid, where: Mask, rng: np.random.Generator) -> tuple[float, float]:
    """A random point (mm) of ``where``, the same on any matrix; of the middle if it is all but empty."""
    for _ in range(1000):
        x, y = rng.uniform(-0.5, 0.5) * grid.field, rng.uniform(0, 1) * grid.field
        if where[int(y / grid.pitch), int((x + grid.field / 2) / grid.pitch)]:
            return x, y
    return 0.0, grid.field / 2


def airways_and_gas(grid: Grid, build: Build, rng: np.random.Generator) -> Array:
    """Trachea and main bronchi, the stomach bubble and some bowel gas."""
    c, gas = build.chest, grid.zeros()
    tube(gas, grid, curve([(0, -10), (0, 60), (-3, 110), (-2, 148)], 16) * c, 8.5)
    tube(gas, grid, np.array([(-2, 146), (-18, 164), (-34, 176)]) * c, 6.5)
    tube(gas, grid, np.array([(-2, 146), (22, 166), (38, 174)]) * c, 5.5)
    gas *= _above(grid, 168 * c, 16)
    if rng.random() < 0.75:  # in the upright patient the bubble ends below in a fluid level
        level = 322 * c - build.breath + rng.normal(0, 4)
        radii = (rng.uniform(18, 34), rng.uniform(10, 17), rng.uniform(9, 22))
        bubble = ellipsoid(grid, (rng.normal(66, 8), level - 4), radii, -8)
        if build.view == "PA":
            bubble *= _above(grid, level, 1.6)
        gas += bubble
    for _ in range(int(rng.integers(0, 4))):
        spot = (rng.uniform(-110, 120), rng.uniform(345, 390))
        radii = (rng.uniform(8, 22), rng.uniform(6, 13), rng.uniform(5, 12))
        add_ellipsoid(gas, grid, spot, radii, rng.uniform(-40, 40))
    return gas
