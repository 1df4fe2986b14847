"""Bones and vessels of the phantom, drawn as tubes: ribs, collar bones, shoulder blades, the branching lung vessels."""

from __future__ import annotations

import numpy as np

from sim.phantom_anatomy import Chest, cavity_edges
from sim.phantom_patient import Patient, Pose
from sim.phantom_strokes import (
    PITCH,
    TOP,
    Ellipsoid,
    Floats,
    Map,
    Points,
    X,
    Y,
    chords,
    empty,
    splat,
    spline,
    tubes,
    window,
)

RIBS = 10


def bones(patient: Patient, pose: Pose) -> Map:
    """The thickness in cm of bone, as if it were all cortical."""
    out = splat([ribs(patient, pose), *collar_bones(pose), *shoulder_blades(patient, pose)])
    out += spine(patient) + _flat_bones(patient, pose)
    return np.asarray(np.float32(patient.bone) * out, np.float32)


def ribs(patient: Patient, pose: Pose) -> Points:
    """Ribs as tilted ellipses in space: the back is almost level, the front runs down and inwards, the wall is dense.

    Each rib starts beside the spine at the back, meets the wall of the thorax at the side and ends at its cartilage.
    """
    height = patient.lung_height * pose.inspiration
    uneven = np.random.default_rng((patient.seed, 4)).normal(0, 1, (2, RIBS))  # no two ribs are quite alike
    index = np.arange(RIBS, dtype=np.float32)
    start = -1.3 + patient.rib_spacing * (index + 0.012 * index**2) * (0.7 + 0.3 * pose.inspiration) + 0.1 * uneven[0]
    fall = patient.rib_drop * np.interp(index, [0, 2, 5, 8, 10], [2.6, 6.0, 9.0, 10.5, 9.5]) + 0.25 * uneven[1]
    lateral = cavity_edges(patient, height)[0][:, 0]
    half = np.interp(start + 0.5 * fall, Y[:, 0], lateral) + 0.35
    ends = np.interp(index, [0, 1, 6, 8, 10], [0.55, 0.6, 0.66, 0.45, 0.1]) * np.pi / 2
    stations = 260
    share = np.linspace(0, 1, stations, dtype=np.float32)[None, :]
    begin = np.arcsin(np.clip(2.0 / half, 0, 1))[:, None]
    angle = begin + share * ((np.pi / 2 + ends)[:, None] - begin)
    x = half[:, None] * np.sin(angle)
    y = start[:, None] + fall[:, None] * (1 - np.cos(angle)) / 2 + 0.35 * np.sin(2 * angle)
    z = 0.62 * half[:, None] * np.cos(angle)
    seen = np.hypot(np.gradient(x, axis=1), np.gradient(y, axis=1))
    length = np.minimum(np.hypot(seen, np.gradient(z, axis=1)), 2.2 * seen)
    flat = np.abs(np.cos(angle))
    front = np.clip((angle - np.pi / 2) * 2, 0, 1)
    radius = (0.36 + (0.26 + 0.10 * front) * flat) * np.interp(index, [0, 3], [0.9, 1.0])[:, None]
    depth = 0.72 * (1 - 0.40 * front) * np.clip(10 * share, 0.4, 1) * np.clip(4 * (1 - share), 0, 1)
    thin = np.interp(index, [0, 3], [0.9, 0.0])[:, None]  # the upper ribs fold so tightly that their turn would glare
    depth = depth * (1 - thin * (1 - flat) ** 2)
    turned = 0.5 * pose.turn * -np.cos(angle)  # the front moves one way, the back the other
    xs = np.concatenate([x + turned, -x + turned]).astype(np.float32)
    ys, radii, depths, lengths = (np.tile(one, (2, 1)) for one in (y, radius, depth, length))
    return tubes(xs, ys, radii, depths, shell=0.62, length=lengths, across=13)


def spine(patient: Patient) -> Map:
    """Vertebral bodies with dense end plates, pedicles and spinous processes, following the bend of the spine."""
    out = empty()
    rows, columns = window(-5, 5, TOP, 40)
    y = Y[rows]
    bend = patient.scoliosis * np.sin((y - 6) / 9)
    x = X[:, columns] - bend
    place = (y + 9) / (2.05 + 0.012 * (y + 9))
    phase = place - np.floor(place)
    half = 1.25 + 0.018 * (y + 9)
    waist = half * (1 - 0.12 * np.sin(np.pi * phase))
    body = np.sqrt(np.clip(1 - (np.abs(x) / waist) ** 6, 0, 1)) * np.clip(8 * np.minimum(phase, 1 - phase), 0.15, 1)
    plate = np.exp(-np.square((np.minimum(phase, 1 - phase) - 0.1) / 0.05)) * (np.abs(x) < waist)
    ring = np.sqrt(np.square((np.abs(x) - 0.62 * half) / 0.32) + np.square((phase - 0.42) / 0.17))
    pedicle = np.exp(-np.square((ring - 1) / 0.3))
    process = np.exp(-np.square(x / 0.28) - np.square((phase - 0.8) / 0.16))
    wings = np.exp(-np.square((phase - 0.35) / 0.13)) * np.clip((3.0 - np.abs(x)) * 2, 0, 1)
    out[rows, columns] = 0.34 * body + 0.12 * plate + 0.15 * pedicle + 0.20 * process + 0.08 * wings
    return out


def collar_bones(pose: Pose) -> list[Points]:
    """Both clavicles, S-shaped, from the breast bone out to the shoulders; a turned patient shows them unequal."""
    out = []
    lift = 1.3 if pose.supine else 0.0
    for side in (-1, 1):
        inner = 1.3 + 0.9 * side * pose.turn
        points = [(inner, 3.9), (inner + 2.4, 3.6), (7.0, 2.0), (11.0, 0.4), (15.0, -0.3), (17.5, -0.1)]
        x, y = spline([(side * px, py - lift * px / 12) for px, py in points], 170)
        along = np.linspace(0, 1, x.shape[1], dtype=np.float32)[None, :]
        radius = 0.52 + 0.38 * np.exp(-along / 0.1) + 0.12 * along
        out.append(tubes(x, y, radius, 0.85, shell=0.55, across=15))
    return out


def shoulder_blades(patient: Patient, pose: Pose) -> list[Points]:
    """Edges of the scapulae, and the upper arms: turned out of the lungs when standing, over them when lying."""
    out = []
    inner = _blade(patient, pose)
    for side in (-1, 1):
        border = [(inner - 0.5, 2.5), (inner - 0.6, 7.5), (inner, 12.5), (inner + 1.6, 14.2)]
        outer = [(inner + 1.6, 14.2), (inner + 3.2, 8.0), (inner + 4.2, 2.6)]
        ridge = [(inner - 0.4, 4.2), (inner + 2.5, 1.4), (inner + 5.0, -0.4)]
        for points, size, depth in ((border, 0.22, 0.35), (outer, 0.5, 0.65), (ridge, 0.55, 0.5)):
            x, y = spline([(side * px, py) for px, py in points], 130)
            out.append(tubes(x, y, size, depth, shell=0.4, across=9))
        arm = inner + 7.2
        away = 0.0 if pose.supine else 1.5
        humerus = [(arm - 0.9, 2.0), (arm + away, 12.0), (arm + 0.3 + 3 * away, 36.0)]
        x, y = spline([(side * px, py) for px, py in humerus], 300)
        out.append(tubes(x, y, 1.15, 1.5, shell=0.6, across=19))
    return out


def _flat_bones(patient: Patient, pose: Pose) -> Map:
    """The plates of the scapulae and the heads of the upper arms."""
    inner = _blade(patient, pose)
    plates = [Ellipsoid(side * (inner + 1.7), 7.0, 2.3, 6.0, 0.22, 10 * side) for side in (-1, 1)]
    heads = [Ellipsoid(side * (inner + 6.3), 1.2, 2.4, 2.5, 1.6) for side in (-1, 1)]
    return chords(plates + heads)


def _blade(patient: Patient, pose: Pose) -> float:
    return patient.half_width + (-2.2 if pose.supine else 0.6)


def vessels(patient: Patient, chest: Chest, pose: Pose) -> Map:
    """The thickness in cm of the lung vessels: trees from both hila, larger below than above when standing."""
    rng = np.random.default_rng((patient.seed, 1))
    hilum = 0.40 * patient.lung_height * (0.3 + 0.7 * pose.inspiration)
    place: list[Floats] = []
    heading: list[Floats] = []
    radius: list[Floats] = []
    for side, level in ((-1, hilum), (1, hilum - 1.0)):
        angles = np.deg2rad(np.array([-72, -48, -25, -5, 15, 35, 52, 66, 80]) + rng.normal(0, 6, 9))
        place.append(np.stack([np.full(9, side * 3.3 + chest.centre * 0.4), level + 1.4 * np.sin(angles)], axis=1))
        heading.append(np.stack([side * np.cos(angles), np.sin(angles)], axis=1))
        upper = 0.8 if pose.supine else 0.62
        radius.append(rng.uniform(0.85, 1.15, 9) * np.where(angles < 0, 0.36 * upper, 0.36))
    out = _trunks(chest, hilum)
    at: Floats
    way: Floats
    size: Floats
    at, way, size = np.concatenate(place), np.concatenate(heading), np.concatenate(radius)
    for generation in range(6):
        x, y, at, way = _grow(rng, at, way, size)
        taper = size[:, None] * np.linspace(1.0, 0.82, x.shape[1])
        out.append(tubes(x, y, taper, 2.6 * taper, across=5 if generation < 3 else 3))
        at, way, size = _branch(rng, at, way, size)
    return splat(out)


def _grow(rng: np.random.Generator, at: Floats, way: Floats, size: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """One gently curved segment for each branch; returns its stations [branches, S] and where and how it ends."""
    count = len(size)
    length = np.minimum(5.2 * np.sqrt(size) * rng.uniform(0.6, 1.2, count), 4.0)[:, None]
    share = np.linspace(0, 1, max(int(length.max() / PITCH * 0.9), 6))[None, :]
    bend = rng.normal(0, 0.22, count)[:, None]
    normal = np.stack([-way[:, 1], way[:, 0]], axis=1)
    x = at[:, :1] + length * (way[:, :1] * share + normal[:, :1] * bend * share**2)
    y = at[:, 1:] + length * (way[:, 1:] * share + normal[:, 1:] * bend * share**2)
    end = way + 2 * bend * normal
    end /= np.hypot(end[:, 0], end[:, 1])[:, None]
    return x, y, np.stack([x[:, -1], y[:, -1]], axis=1), end


def _branch(rng: np.random.Generator, at: Floats, way: Floats, size: Floats) -> tuple[Floats, Floats, Floats]:
    """Each branch in two, the one that goes on straighter the thicker; the thinnest end."""
    angle = rng.uniform(0.2, 0.62, len(size)) * rng.choice([-1, 1], len(size))
    pairs = [(0.55 * angle, 0.84), (-angle, 0.66)]
    turned = [
        np.stack([way[:, 0] * np.cos(a) - way[:, 1] * np.sin(a), way[:, 0] * np.sin(a) + way[:, 1] * np.cos(a)], axis=1)
        for a, _ in pairs
    ]
    sizes = np.concatenate([size * factor for _, factor in pairs])
    keep = sizes > 0.035
    return np.concatenate([at, at])[keep], np.concatenate(turned)[keep], sizes[keep]


def _trunks(chest: Chest, hilum: float) -> list[Points]:
    """The large hilar arteries, the right descending one first."""
    out = []
    curves = [
        [(-2.2, hilum - 1.6), (-3.9, hilum + 0.2), (-4.6, hilum + 3.0), (-4.9, hilum + 5.5)],
        [(2.4, hilum - 2.2), (4.0, hilum - 0.9), (4.7, hilum + 1.6), (5.0, hilum + 4.0)],
        [(-2.4, hilum - 1.2), (-4.2, hilum - 2.6), (-5.2, hilum - 5.0)],
        [(2.6, hilum - 1.8), (4.3, hilum - 3.2), (5.2, hilum - 5.4)],
    ]
    for points, thick in zip(curves, (0.72, 0.72, 0.42, 0.42), strict=True):
        x, y = spline([(px + 0.4 * chest.centre, py) for px, py in points], 90)
        size = (thick * np.linspace(1, 0.6, x.shape[1], dtype=np.float32))[None, :]
        out.append(tubes(x, y, size, 1.8 * size, across=11))
    return out
