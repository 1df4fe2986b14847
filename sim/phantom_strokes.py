"""The drawing board of the phantoms: a canvas in centimetres, ellipsoids, and tubes drawn by scattering their volume.

Everything is drawn as a map of path lengths: how many centimetres of a material a vertical ray crosses at each place.
Path lengths add up as they do for X-rays, so that overlapping ribs, vessels and heart need no special care.

Coordinates: x grows to the patient's left (the right of the picture), y grows downwards, the origin lies in the
midline at the level of the lung apices; both in centimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]

PITCH = 0.115  # cm; a rib is ten pixels high, and the picture is interpolated from here to the scanner's matrix
LEFT, TOP, COLUMNS, ROWS = -23.0, -9.0, 400, 408
X: Map = (LEFT + PITCH * np.arange(COLUMNS, dtype=np.float32))[None, :]
Y: Map = (TOP + PITCH * np.arange(ROWS, dtype=np.float32))[:, None]


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid seen from the front: centre, half axes and full thickness `depth` in cm, `turn` in degrees."""

    x: float
    y: float
    a: float
    b: float
    depth: float
    turn: float = 0.0


def empty() -> Map:
    """A canvas of zeros [ROWS, COLUMNS]."""
    return np.zeros((ROWS, COLUMNS), np.float32)


def window(left: float, right: float, top: float, bottom: float) -> tuple[slice, slice]:
    """The rows and columns of the canvas that hold the rectangle, which is given in cm."""
    columns = np.clip([(left - LEFT) / PITCH, (right - LEFT) / PITCH + 2], 0, COLUMNS).astype(int)
    rows = np.clip([(top - TOP) / PITCH, (bottom - TOP) / PITCH + 2], 0, ROWS).astype(int)
    return slice(rows[0], rows[1]), slice(columns[0], columns[1])


def radius_squared(body: Ellipsoid, x: Map, y: Map) -> Map:
    """The squared elliptic radius of each place: 0 in the centre, 1 on the outline."""
    angle = np.deg2rad(body.turn)
    dx, dy = x - np.float32(body.x), y - np.float32(body.y)
    along = (dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))) / np.float32(body.a)
    across = (dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))) / np.float32(body.b)
    return np.asarray(along * along + across * across, np.float32)


def chords(bodies: list[Ellipsoid]) -> Map:
    """The thickness in cm of the union of ellipsoids; where they overlap the thicker one counts most (a 4-norm)."""
    out = empty()
    for body in bodies:
        reach = max(body.a, body.b)
        rows, columns = window(body.x - reach, body.x + reach, body.y - reach, body.y + reach)
        inside = np.maximum(1.0 - radius_squared(body, X[:, columns], Y[rows]), 0.0)
        out[rows, columns] += np.square(np.float32(body.depth**2) * inside)
    return np.asarray(np.sqrt(np.sqrt(out)), np.float32)


class Points(NamedTuple):
    """Many small volumes: where they are in cm, and how large they are in cm3; flat arrays of one length."""

    x: Map
    y: Map
    volume: Map


def splat(points: list[Points]) -> Map:
    """Scatter points over their four nearest pixels each; the result is a thickness in cm."""
    x, y, volume = (np.concatenate(part) for part in zip(*points, strict=True))
    column, row = (x - np.float32(LEFT)) / np.float32(PITCH), (y - np.float32(TOP)) / np.float32(PITCH)
    keep = (column >= 0) & (column < COLUMNS - 1) & (row >= 0) & (row < ROWS - 1)
    column, row, weight = column[keep], row[keep], volume[keep]
    left, top = column.astype(np.int64), row.astype(np.int64)
    dx, dy = column - left.astype(np.float32), row - top.astype(np.float32)
    flat = top * COLUMNS + left
    upper, lower = weight * (1 - dy), weight * dy
    total = np.zeros(ROWS * COLUMNS)
    for step, part in ((0, upper * (1 - dx)), (1, upper * dx), (COLUMNS, lower * (1 - dx)), (COLUMNS + 1, lower * dx)):
        total[step:] += np.bincount(flat, part, minlength=total.size)[: total.size - step]
    return (total.reshape(ROWS, COLUMNS) / PITCH**2).astype(np.float32)


def tubes(
    x: Floats,
    y: Floats,
    radius: Floats | float,
    depth: Floats | float,
    *,
    shell: float = 0.0,
    length: Floats | None = None,
    across: int = 7,
) -> Points:
    """Curved tubes [tubes, stations] of half width `radius` and central thickness `depth` in cm, as points to splat.

    `shell` 0 to 1 is how much of the inside is hollow, which leaves the bright outlines of cortical bone. `length` is
    the true length in cm of each station where the tube also runs towards the viewer; a tube seen end-on is then
    denser. `across` points lie side by side; they should not be further apart than pixels are.
    """
    dx, dy = np.gradient(x, axis=1), np.gradient(y, axis=1)
    step = np.hypot(dx, dy) + np.float32(1e-6)
    offset = ((np.arange(across, dtype=np.float32) + 0.5) * (2 / across) - 1)[None, None, :]
    hollow = 0.8
    profile = np.sqrt(1 - offset**2) - shell * hollow * np.sqrt(np.maximum(1 - (offset / hollow) ** 2, 0))
    aside = radius / step
    volume = (step if length is None else length) * radius * (2 / across) * depth
    x, y, right, down, volume = (part.astype(np.float32)[..., None] for part in (x, y, -dy * aside, dx * aside, volume))
    return Points((x + right * offset).ravel(), (y + down * offset).ravel(), (volume * profile).ravel())


def spline(points: list[tuple[float, float]], stations: int) -> tuple[Map, Map]:
    """A smooth curve through a few points: x [1, stations] and y [1, stations] in cm (a polynomial of low degree)."""
    knots = np.asarray(points, np.float64)
    at = np.r_[0.0, np.cumsum(np.hypot(*np.diff(knots, axis=0).T))]
    at /= at[-1]
    fine = np.linspace(0, 1, stations)
    degree = min(len(points) - 1, 4)
    x, y = (np.polyval(np.polyfit(at, knots[:, axis], degree), fine).astype(np.float32)[None, :] for axis in (0, 1))
    return x, y


def smoothstep(edge0: float, edge1: float, value: Floats) -> Map:
    """0 below `edge0`, 1 above `edge1`, smooth in between."""
    t = np.clip((value - np.float32(edge0)) / np.float32(edge1 - edge0), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
