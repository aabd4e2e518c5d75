"""The bones of the phantom's chest, as thickness of dense bone along the beam (mm).

A rib is a hollow band on an oblique ellipse around the lung, so that its front and its back part project as
they do in a radiograph: the back nearly level, the front sloping down to the cartilage.
"""

from __future__ import annotations

import cv2
import numpy as np

from pacs_node.phantom.anatomy import Build, LungShape
from pacs_node.phantom.shapes import Array, Grid, add_ellipsoid, chord, curve, ellipsoid, tube

SPONGIOSA = 0.28
"""Share of dense bone in the spongiosa of ribs and vertebrae of a young adult."""

CORTEX_MM = 0.65


def rib_curve(number: int, lung: LungShape, build: Build, rng: np.random.Generator) -> np.ndarray:
    """Axis of rib ``number`` (1 to 12) of one side, shape (n, 4): x, y, z in mm, the angle around the chest.

    The angle runs from 0 (behind, at the spine) over 90 degrees (the flank) to the front; z points forwards.
    """
    c = build.chest
    head = (56 + 22.6 * (number - 1) + rng.normal(0, 0.8)) * c
    drop = (
        float(np.interp(number, [1, 2, 3, 5, 7, 9, 10, 11, 12], [36, 56, 74, 96, 112, 118, 104, 84, 60])) * c
    )
    last = float(np.interp(number, [1, 2, 4, 6, 8, 10, 11, 12], [158, 156, 152, 146, 138, 122, 96, 68]))
    theta = np.deg2rad(np.linspace(4, last + rng.normal(0, 2), 56))
    flank_y = head + drop * 0.45
    reach = max(lung.lateral(flank_y) + 3.5, 52 * c) if number > 1 else 64 * c * build.width
    reach = min(reach, lung.x + lung.rx + 3.5)
    # Behind the flank the rib leaves the spine level or slightly rising; in front it sinks steadily.
    sink = drop * (0.5 - 0.5 * np.cos(theta)) ** 1.1 - 4.0 * c * np.sin(np.clip(theta * 2.2, 0, np.pi)) ** 2
    x = lung.side * (reach * np.sin(theta) ** 0.92 + 5 * np.cos(theta).clip(0) ** 2)
    depth = lung.rz * (0.6 + 0.4 * min(1.0, number / 5))
    return np.column_stack([x, head + sink, -depth * np.cos(theta), theta])


def ribs(grid: Grid, build: Build, pair: tuple[LungShape, LungShape], rng: np.random.Generator) -> Array:
    """All ribs, front and back parts added where they cross; calcified cartilage in the old."""
    total = grid.zeros()
    slim = 0.88 if build.sex == "F" else 1.0
    mineral = SPONGIOSA * (1 - 0.004 * max(build.age_years - 40, 0))
    for lung in pair:
        back, front = grid.zeros(), grid.zeros()
        for number in range(1, 13):
            axis = rib_curve(number, lung, build, rng)
            x, y, _, theta = axis.T
            step = np.gradient(axis[:, :3], axis=0)
            plane = np.hypot(step[:, 0], step[:, 1])
            slant = np.clip(np.hypot(plane, step[:, 2]) / np.maximum(plane, 1e-6), 1, 3.2)
            tall = (
                float(np.interp(number, [1, 2, 4, 8, 10, 12], [6.4, 5.6, 5.7, 6.2, 5.4, 4.0]))
                * slim
                * rng.normal(1, 0.04)
            )
            flat = float(np.interp(number, [1, 6, 12], [2.8, 4.1, 3.1])) * slim
            facing = np.abs(np.cos(theta))
            widening = 1 + 0.16 * np.clip((theta - 2.0) / 0.6, 0, 1)  # towards the cartilage
            half = (
                np.sqrt((tall * facing) ** 2 + (flat * np.sqrt(1 - facing**2)) ** 2)
                * widening
                * (0.82 + 0.18 * facing)
            )
            depth = 2 * flat * slant * np.clip((theta[-1] - theta) / 0.16, 0.02, 1)
            split = int(np.searchsorted(theta, np.pi / 2))
            cortex = CORTEX_MM * slim
            for target, part in ((back, slice(0, split + 1)), (front, slice(split, None))):
                if len(x[part]) > 1:
                    tube(
                        target,
                        grid,
                        np.column_stack([x, y])[part],
                        half[part],
                        depth[part],
                        wall=cortex,
                        core=mineral,
                        flat_ends=True,
                    )
            if (
                build.age_years > 60
                and number in (1, 2, 3, 4, 5, 6, 7)
                and rng.random() < (build.age_years - 55) / 40
            ):
                _calcify(front, grid, axis[-1, :2], axis[-1, :2] - axis[-3, :2], tall, rng)
        total += back + front
    return total


def _calcify(
    target: Array, grid: Grid, end: np.ndarray, along: np.ndarray, tall: float, rng: np.random.Generator
) -> None:
    """Flecks of calcium in the cartilage beyond the front end of a rib."""
    direction = along / max(float(np.hypot(*along)), 1e-6)
    for _ in range(int(rng.integers(3, 9))):
        at = end + direction * rng.uniform(1, 18) + rng.normal(0, 0.45 * tall, 2)
        size = rng.uniform(0.8, 2.2)
        add_ellipsoid(target, grid, (at[0], at[1]), (size * 1.6, size, 0.7 * size), rng.uniform(0, 180))


def spine(grid: Grid, build: Build, rng: np.random.Generator) -> Array:
    """Vertebrae from neck to waist: bodies with end plates, pedicles, transverse and spinous processes."""
    out, arch = grid.zeros(), grid.zeros()
    c = build.chest
    bend = rng.normal(0, 3)
    mineral = (0.17 if build.sex == "M" else 0.13) * (1 - 0.005 * max(build.age_years - 35, 0))
    for level in range(-3, 16):  # 0 is the first thoracic vertebra
        y = (58 + 22.6 * level + 0.12 * max(level - 8, 0) ** 2 * 3) * c
        if y > grid.field + 20:
            break
        x = bend * np.sin(y / 120)
        wide = float(np.interp(level, [-3, 0, 6, 12, 15], [12, 15, 14, 18, 21])) * c
        tall = float(np.interp(level, [-3, 0, 6, 12, 15], [7.4, 9.2, 9.9, 11.6, 12.6])) * c
        deep = float(np.interp(level, [-3, 0, 6, 12, 15], [14, 16, 24, 30, 33])) * c
        waist = wide * (0.92 + 0.08 * np.clip(np.abs(grid.y - y) / tall, 0, 1) ** 2)
        rows, _ = grid.box(0, 0, y - tall - 2, y + tall + 2)
        if rows.start >= rows.stop:
            continue
        at = grid.y[rows]
        u, v = np.abs(grid.x - x) / waist[rows], np.abs(at - y) / tall
        block = deep * chord(u**4 + v**10)
        plates = np.exp(-(((np.abs(at - y) - tall + 1.1) / 0.8) ** 2)) * (u < 1)
        np.maximum(out[rows], mineral * block * (1 + 0.55 * plates), out=out[rows])
        for side in (-1, 1):
            pedicle = (x + side * wide * 0.66, y - tall * 0.25)
            add_ellipsoid(arch, grid, pedicle, (3.4 * c, 5.0 * c, 1.8 * c))
            add_ellipsoid(arch, grid, pedicle, (2.4 * c, 4.0 * c, -1.3 * c))
            tip = (x + side * (wide + 11 * c * (1 - 0.04 * level)), y - 3 * c)
            tube(
                arch,
                grid,
                [(x + side * wide * 0.7, y), tip],
                [4.2 * c, 3.2 * c],
                [5, 5],
                wall=0.5,
                core=mineral,
            )
        tube(
            arch,
            grid,
            [(x, y + 4 * c), (x + rng.normal(0, 0.8), y + 16 * c)],
            [2.2 * c, 3.4 * c],
            [7, 5],
            wall=0.6,
            core=0.2,
        )
    return out + arch


def sternum(grid: Grid, build: Build) -> Array:
    """Manubrium and body of the breast bone: thin, seen at most as an edge beside the spine."""
    c, out = build.chest, grid.zeros()
    tube(out, grid, np.array([(0, 96), (0, 116)]) * c, np.array([20, 14]) * c, 8, wall=0.5, core=0.1)
    tube(
        out,
        grid,
        np.array([(0, 126), (0, 170), (0, 215)]) * c,
        np.array([12, 15, 14]) * c,
        8,
        wall=0.7,
        core=0.1,
    )
    return out


def shoulders(grid: Grid, build: Build, rng: np.random.Generator) -> Array:
    """Clavicles, scapulae and the heads and shafts of the upper arms."""
    c, w = build.chest, build.chest * build.width
    bedside = build.view == "AP"
    slim = 0.86 if build.sex == "F" else 1.0
    total = grid.zeros()
    for side in (-1, 1):
        drop = side * build.tilt * 0.7 + (-12 if bedside else 0)
        rise = rng.normal(24 if bedside else 20, 3)
        s = side * w
        collar = [(15, 84), (36, 79), (64, 72), (98, 66 - rise * 0.4), (128, 68 - rise), (152, 72 - rise)]
        points = curve([(s * x, y * c + drop * min(1, x / 90)) for x, y in collar], 30)
        girth = (
            np.interp(np.linspace(0, 1, 30), [0, 0.12, 0.3, 0.6, 0.85, 1], [9, 6.6, 5.2, 5.2, 6.6, 7.4])
            * slim
        )
        bone = grid.zeros()
        tube(bone, grid, points, girth, girth * 1.9, wall=1.4 * slim, core=0.12)
        total += bone
        # Rolled forward (PA), the shoulder blade turns off the lung; at the bedside (AP) it stays on it.
        out = 14 * w if not bedside else -6 * w
        blade = np.array(
            [
                (132, 78),
                (160, 84),
                (158, 112),
                (146, 150),
                (128, 204),
                (118, 216),
                (111, 206),
                (106, 150),
                (104, 98),
                (114, 84),
            ]
        )
        shape = np.column_stack([side * (blade[:, 0] * w + out), blade[:, 1] * c + drop + 6])
        closed = curve(np.vstack([shape, shape[:1]]), 80)
        mask = np.zeros(bone.shape, np.uint8)
        pixels = np.round(
            np.column_stack([(closed[:, 0] + grid.field / 2), closed[:, 1]]) / grid.pitch * 16
        ).astype(np.int32)
        cv2.fillPoly(mask, [pixels], 255, lineType=cv2.LINE_AA, shift=4)
        plate: Array = mask.astype(np.float32) * np.float32(0.9 / 255)
        lateral = shape[2:6]
        tube(plate, grid, curve(lateral, 16), np.array([5.5, *([4.2] * 15)]), 7, wall=1.2, core=0.12)
        tube(plate, grid, curve(np.vstack([shape[6:9]]), 12), 2.0, 3.6, wall=0.9, core=0.1)
        tube(plate, grid, curve(shape[[9, 0, 1]], 12), 2.2, 3.2, wall=0.9, core=0.1)
        total += plate
        crest = grid.zeros()
        ridge = curve(
            [shape[8] + (0, 14), (shape[0] + shape[8]) / 2 + (0, 8), shape[1] + (side * 6, -26)], 16
        )
        tube(crest, grid, ridge, np.linspace(3, 8, 16), np.linspace(4, 9, 16), wall=1.1, core=0.12)
        socket = shape[1] + (side * 2, 16)
        tube(crest, grid, [socket - (0, 11), socket - (-side * 1.5, -12)], 5.5, 14, wall=1.2, core=0.2)
        tube(
            crest,
            grid,
            [shape[1] + (-side * 12, -2), shape[1] + (side * 0, 4)],
            [5, 4.5],
            wall=1.3,
            core=0.15,
        )
        total += crest
        arm = grid.zeros()
        head = socket - (-side * 21, 2)
        swing = 20 if bedside else 32
        shaft = curve(
            [
                head - (-side * 2, -8),
                head - (-side * swing * 0.5, -60),
                head - (-side * swing, -130),
                head - (-side * swing * 1.4, -230),
            ],
            20,
        )
        tube(
            arm,
            grid,
            shaft,
            np.interp(np.linspace(0, 1, 20), [0, 0.2, 1], [16, 11.5, 10.5]) * slim,
            wall=3.0 * slim,
            core=0.05,
        )
        ball = ellipsoid(grid, (head[0], head[1]), (23 * slim, 22 * slim, 22 * slim))
        inner = ellipsoid(grid, (head[0], head[1]), (21.8 * slim, 20.8 * slim, 20.8 * slim))
        total += np.maximum(arm, np.clip(ball - (1 - 0.16) * inner, 0, None))
    return total
