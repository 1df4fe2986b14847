"""Pictures an archive also holds: lateral chest views and axial CT slices, which a frontal data set must leave out."""

from __future__ import annotations

import numpy as np

from sim.phantom_detector import Scanner, expose
from sim.phantom_patient import Patient, Pose
from sim.phantom_strokes import TOP, Ellipsoid, Map, X, Y, chords, empty, smoothstep, splat, spline, tubes


def lateral(patient: Patient, scanner: Scanner, rng: np.random.Generator) -> Map:
    """A left lateral chest radiograph, float32 [scanner.rows, scanner.columns], 0 to 1, the breast bone on the left."""
    deep, height = 0.86 * patient.half_width, patient.lung_height
    dome = height + 0.28 * np.maximum(X + 2, 0) + 0.05 * np.square(np.minimum(X + 3, 0)) - 1.0
    chest = Ellipsoid(0.6, 0.62 * height, 1.02 * deep, 0.60 * height, 20.0, 4)
    apex = Ellipsoid(2.2, 0.28 * height, 6.5, 6.5, 16.0)
    lung = chords([chest, apex]) * smoothstep(1.5, 0.0, (Y - dome).astype(np.float32))
    heart = chords(
        [
            Ellipsoid(-3.4, 0.80 * height, 5.6, 5.0, 13.0, 50),
            Ellipsoid(-1.6, 0.50 * height, 3.4, 5.5, 8.0, -15),
            Ellipsoid(1.5, 0.36 * height, 2.6, 2.2, 7.0),
            Ellipsoid(0.6, 0.52 * height, 1.6, 1.9, 5.0),
        ]
    )
    trunk = Ellipsoid(0.6, 0.75 * height, deep + 1.5 + patient.girth, 1.6 * height, 30.0)
    neck = Ellipsoid(2.5, -6.0, 5.5, 12.0, 12.0, 10)
    x, y = spline([(1.5, TOP), (1.2, 2.0), (1.0, 0.42 * height)], 200)
    windpipe = splat([tubes(x, y, 0.9, 2.0, across=15)])
    water = chords([trunk, neck]) - 0.74 * np.maximum(lung - heart, 0) - windpipe
    return expose(np.maximum(water, 0), _lateral_bones(patient, deep), scanner, Pose(tilt=1.0), rng)


def ct_slice(patient: Patient, side: int, rng: np.random.Generator) -> Map:
    """An axial chest CT slice in Hounsfield units, float32 [side, side], -1024 to about 1500."""
    width = patient.half_width + 0.8 * patient.girth + 2
    axis = np.linspace(-1.25 * width, 1.25 * width, side, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]

    def inside(cx: float, cy: float, a: float, b: float, edge: float = 0.03) -> Map:
        radius = np.square((x - cx) / a) + np.square((y - cy) / b)
        return smoothstep(1 + edge, 1 - edge, radius.astype(np.float32))

    half, fat = patient.half_width, patient.girth
    layers = [  # each layer covers the ones before it: value in HU, centre and half axes in cm
        (-95, (0, 0, width, 0.68 * width)),
        (45, (0, 0, width - fat, 0.68 * width - fat)),
        *((-850, (side * 0.48 * half, -0.3, 0.42 * half, 0.5 * half)) for side in (-1, 1)),
        (40, (0.12 * half, -0.22 * half, 0.36 * half, 0.28 * half)),
        (50, (0.10 * half, 0.28 * half, 1.2, 1.2)),
        (380, (0, 0.5 * half, 1.7, 1.4)),
        (60, (0, 0.62 * half, 0.8, 0.7)),
        (450, (0, -0.58 * half, 1.5, 0.5)),
    ]
    picture = np.full((side, side), -1000, np.float32)
    for value, place in layers:
        cover = inside(*place)
        picture += (value - picture) * cover
    for angle in np.linspace(0.3, 2 * np.pi - 0.3, 16):
        spot = inside(0.96 * half * np.sin(angle), 0.62 * half * np.cos(angle), 0.9, 0.5)
        picture += (520 - picture) * spot
    lungs = picture < -600
    specks = rng.standard_normal((side, side), dtype=np.float32) * np.where(lungs, 60, 18)
    return np.clip(picture + specks.astype(np.float32), -1024, 3000)


def _lateral_bones(patient: Patient, deep: float) -> Map:
    out = empty()
    back = deep - 0.8
    place = (Y - TOP) / 2.4
    phase = place - np.floor(place)
    centre = back + 1.2 * np.sin((Y + 2) / 12)
    body = smoothstep(1.7, 1.4, np.abs(X - centre))
    out += np.float32(0.9) * body * smoothstep(0.02, 0.12, np.minimum(phase, 1 - phase))
    x, y = spline([(-deep + 1.8, 3.5), (-deep - 0.3, 9.0), (-deep - 0.6, 16.0)], 200)
    parts = [tubes(x, y, 0.6, 1.0, shell=0.5, across=13)]
    for index in range(10):
        start = -0.5 + patient.rib_spacing * index
        ribs = [(back + 1.5, start), (0.3 * back, start + 3.0 + 0.2 * index), (-deep + 1.5, start + 6.5 + 0.25 * index)]
        x, y = spline(ribs, 260)
        parts += [tubes(x, y + low, size, 0.4, shell=0.6, across=11) for low, size in ((0.0, 0.55), (0.5, 0.6))]
    return np.asarray((out + splat(parts)) * np.float32(patient.bone), np.float32)
