"""Thickness of simple bodies along the beam: the bricks of which the phantom's anatomy is built.

Every function returns or writes a *thickness map*: for each pixel the length, in millimetres, that a ray
parallel to the z axis (the beam) spends inside the body. All lengths are millimetres in the detector plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice]


@dataclass(frozen=True)
class Grid:
    """A square detector of ``size`` pixels over ``field`` mm: x from the midline to the right, y down."""

    size: int
    field: float

    @cached_property
    def pitch(self) -> float:
        """Distance of two pixel centres in mm."""
        return self.field / self.size

    @cached_property
    def x(self) -> Array:
        """Pixel centres, shape (1, size)."""
        return ((np.arange(self.size, dtype=np.float32) + 0.5) * self.pitch - self.field / 2)[None, :]

    @cached_property
    def y(self) -> Array:
        """Pixel centres, shape (size, 1)."""
        return ((np.arange(self.size, dtype=np.float32) + 0.5) * self.pitch)[:, None]

    def zeros(self) -> Array:
        """An empty thickness map."""
        return np.zeros((self.size, self.size), np.float32)

    def box(self, x0: float, x1: float, y0: float, y1: float) -> Box:
        """The pixels that a rectangle in mm touches, as (rows, columns)."""

        def span(low: float, high: float) -> slice:
            first = min(max(floor(low / self.pitch), 0), self.size)
            return slice(first, max(first, min(ceil(high / self.pitch) + 1, self.size)))

        return span(y0, y1), span(x0 + self.field / 2, x1 + self.field / 2)


def chord(q: Array | np.ndarray) -> Array:
    """Half chord of a unit sphere where the squared distance from its centre is ``q`` (0 outside)."""
    return np.sqrt(np.maximum(1 - q, 0), dtype=np.float32)


def ellipsoid(
    grid: Grid,
    centre: tuple[float, float],
    radii: tuple[float, float, float],
    degrees: float = 0,
    power: float = 2,
) -> Array:
    """Thickness of an ellipsoid with half axes ``radii`` (x, y, z), turned in the image plane.

    ``power`` above 2 makes the outline a superellipse (squarer); the profile along the beam stays circular.
    """
    out = grid.zeros()
    add_ellipsoid(out, grid, centre, radii, degrees, power)
    return out


def add_ellipsoid(
    target: Array,
    grid: Grid,
    centre: tuple[float, float],
    radii: tuple[float, float, float],
    degrees: float = 0,
    power: float = 2,
) -> None:
    """Add an `ellipsoid` to ``target``, touching only the pixels that it covers."""
    angle = np.deg2rad(degrees)
    reach = 1.42 * max(radii[:2])
    box = grid.box(centre[0] - reach, centre[0] + reach, centre[1] - reach, centre[1] + reach)
    dx, dy = grid.x[:, box[1]] - np.float32(centre[0]), grid.y[box[0]] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = (dx * cos + dy * sin) / np.float32(radii[0])
    v = (dy * cos - dx * sin) / np.float32(radii[1])
    q = u * u + v * v if power == 2 else np.abs(u) ** np.float32(power) + np.abs(v) ** np.float32(power)
    target[box] += np.float32(2 * radii[2]) * chord(q)


def tube(
    target: Array,
    grid: Grid,
    points: npt.ArrayLike,
    half_width: npt.ArrayLike,
    depth: npt.ArrayLike | None = None,
    *,
    wall: float = 0,
    core: float = 1,
    flat_ends: bool = False,
) -> None:
    """Draw a bent tube into ``target`` (union: the larger thickness stays).

    ``points`` (n, 2) is its axis, ``half_width`` (n,) or a number its half width in the image plane,
    ``depth`` its whole extent along the beam (default: round). With ``wall`` > 0 it is a shell of that
    thickness, its inside filled to the fraction ``core``: a bone with cortex and spongiosa. Its ends are
    round unless ``flat_ends``. A tube thinner than a pixel keeps its cross-section area.
    """
    axis = np.asarray(points, np.float64)
    n = len(axis)
    widths = np.broadcast_to(np.asarray(half_width, np.float64), (n,))
    depths = 2 * widths if depth is None else np.broadcast_to(np.asarray(depth, np.float64), (n,))
    reaches = np.maximum(widths, 0.75 * grid.pitch)
    least = np.float32(0.75 * grid.pitch)

    def touched(some: slice) -> Box:
        reach = float(reaches[some].max())
        (x0, y0), (x1, y1) = axis[some].min(0).tolist(), axis[some].max(0).tolist()
        return grid.box(x0 - reach, x1 + reach, y0 - reach, y1 + reach)

    rows, cols = touched(slice(n))
    shape = (rows.stop - rows.start, cols.stop - cols.start)
    if 0 in shape:
        return
    # For every pixel the nearest place on the axis, in units of the half width there. The segments of a
    # twig are looked at together, since thousands of twigs make a vessel tree; those of a rib, each in its
    # own part of the image, one by one.
    nearest = np.full(shape, 2, np.float32)
    width, thickness = np.full(shape, reaches.max(), np.float32), np.zeros(shape, np.float32)
    together = n - 1 if shape[0] * shape[1] <= 4096 else 1
    for first in range(0, n - 1, together):
        start, end = slice(first, first + together), slice(first + 1, first + together + 1)
        part = touched(slice(first, first + together + 1))
        if part[0].start >= part[0].stop or part[1].start >= part[1].stop:
            continue
        local = (
            slice(part[0].start - rows.start, part[0].stop - rows.start),
            slice(part[1].start - cols.start, part[1].stop - cols.start),
        )
        # (segment, row, column)
        ax, ay = axis[start].astype(np.float32).T[:, :, None, None]
        ex, ey = (axis[end] - axis[start]).astype(np.float32).T[:, :, None, None]
        dx, dy = grid.x[:, part[1]] - ax, grid.y[part[0]] - ay
        free = (dx * ex + dy * ey) / np.maximum(ex * ex + ey * ey, np.float32(1e-9))
        along = np.minimum(np.maximum(free, 0), 1)
        here = np.maximum(_between(widths, start, end, along), 1e-3).astype(np.float32)
        drawn = np.maximum(here, least)
        q = ((dx - along * ex) ** 2 + (dy - along * ey) ** 2) / drawn**2
        if flat_ends and first == 0:
            q[0][free[0] < 0] = 2
        if flat_ends and first + together == n - 1:
            q[-1][free[-1] > 1] = 2
        deep = (_between(depths, start, end, along) * (here / drawn)).astype(np.float32)
        best = q.argmin(0), np.arange(q.shape[1])[:, None], np.arange(q.shape[2])
        q, drawn, deep = q[best], drawn[best], deep[best]
        closer = q < nearest[local]
        np.copyto(nearest[local], q, where=closer)
        np.copyto(width[local], drawn, where=closer)
        np.copyto(thickness[local], deep, where=closer)
    profile = chord(nearest)
    if wall > 0:
        inner = np.maximum(1 - wall / width, 1e-3)
        hollow = np.maximum(1 - 2 * wall / np.maximum(thickness, 2 * wall + 1e-3), 0)
        profile -= np.float32(1 - core) * hollow * chord(nearest / inner**2)
    view = target[rows, cols]
    np.maximum(view, thickness * profile, out=view)


def _between(values: npt.NDArray[np.float64], start: slice, end: slice, along: Array) -> np.ndarray:
    """``values`` at the share ``along`` of the way from each segment's start to its end."""
    first, last = values[start, None, None], values[end, None, None]
    mixed: np.ndarray = first + along * (last - first)
    return mixed


def curve(points: npt.ArrayLike, n: int = 32) -> npt.NDArray[np.float64]:
    """A smooth (Catmull-Rom) curve of ``n`` points through the given ones, of any dimension."""
    knots = np.asarray(points, np.float64)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0, len(knots) - 1, n)
    i = np.minimum(t.astype(int), len(knots) - 2)
    s = (t - i)[:, None]
    p0, p1, p2, p3 = padded[i], padded[i + 1], padded[i + 2], padded[i + 3]
    return np.asarray(
        0.5
        * (
            2 * p1
            + (p2 - p0) * s
            + (2 * p0 - 5 * p1 + 4 * p2 - p3) * s**2
            + (3 * p1 - p0 - 3 * p2 + p3) * s**3
        )
    )
