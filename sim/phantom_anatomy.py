"""Soft tissue of the phantom: the lungs, the heart and great vessels, the airways, the outline of the body.

The frontal picture of a chest is a map of path lengths. Lung tissue weighs about a quarter of water, so a place is
dark as far as the ray runs through lung, and an outline is sharp where the ray grazes a dome (heart, diaphragm): the
silhouette sign (Felson and Felson, Radiology 55, 1950) follows from the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.phantom_patient import Patient, Pose
from sim.phantom_strokes import TOP, Ellipsoid, Map, X, Y, chords, empty, smoothstep, splat, spline, tubes

LUNG_DENSITY = 0.26  # of water, in inspiration


@dataclass(frozen=True)
class Chest:
    """The cavity the lungs fill; lengths in cm, maps [ROWS, COLUMNS] unless said otherwise."""

    lung: Map  # thickness of lung along the ray, heart and mediastinum already taken out
    cavity: Map  # the same before the heart is taken out
    heart: Map  # thickness of heart and great vessels
    wall: Map  # distance to the lateral or apical chest wall, inwards positive
    across: Map  # 0 at the medial, 1 at the lateral border of the lung
    lateral: Map  # [ROWS, 1] half width of the cavity at each height
    medial: Map  # [ROWS, 1] where the lung begins beside the spine
    dome: Map  # [1, COLUMNS] height of the diaphragm
    tops: tuple[float, float]  # height of the right and the left dome
    centre: float  # sideways place of the heart's midline


def build_chest(patient: Patient, pose: Pose, heart_ratio: float) -> Chest:
    """Lungs, diaphragm and heart of a patient in a pose; `heart_ratio` is the cardiothoracic ratio to draw."""
    height = patient.lung_height * pose.inspiration
    tops = (height, height + 1.1)
    lateral, medial = cavity_edges(patient, height)
    dome = _dome(patient, tops)
    ax = np.abs(X)
    across = (ax - medial) / np.maximum(lateral - medial, 0.01)
    slope = np.gradient(lateral[:, 0], Y[:, 0])[:, None]
    wall = (lateral - ax) / np.sqrt(1 + slope**2)
    cavity = _cavity(patient, height, across, dome)
    centre = 0.7 * pose.turn
    heart = chords(heart_bodies(patient, tops[1], heart_ratio * (1.06 if pose.supine else 1.0), centre))
    heart *= smoothstep(1.6, 0.2, Y - dome)  # the heart rests on the diaphragm
    lung = np.maximum(cavity - heart, 0)
    return Chest(lung, cavity, heart, np.asarray(wall, np.float32), across, lateral, medial, dome, tops, centre)


def cavity_edges(patient: Patient, height: float) -> tuple[Map, Map]:
    """The lateral and the medial border of the lungs at each height, [ROWS, 1] each, in cm from the midline."""
    apex = 0.36 * patient.half_width
    down = np.clip(Y / np.float32(0.66 * height), 0, 1)
    lateral = apex + (patient.half_width - apex) * (1 - (1 - down) ** 2.2) ** 0.56
    lateral = lateral - 0.035 * patient.half_width * np.clip(Y / height - 0.75, 0, 1) ** 2 * 8
    near = np.clip(Y / np.float32(0.22 * height), 0, 1)
    medial = apex - (apex - 1.5) * (1 - (1 - near) ** 2) ** 0.5
    return lateral.astype(np.float32), medial.astype(np.float32)


def _dome(patient: Patient, tops: tuple[float, float]) -> Map:
    """The height of the diaphragm at each column: a dome with a deep lateral and a shallow medial sulcus."""
    ax, width = np.abs(X), np.float32(patient.half_width)
    t = (ax - 0.42 * width) / (0.58 * width)
    fall = np.where(t > 0, 1.6 * t**2 + 3.0 * np.clip(t, 0, 1) ** 6, 2.6 * t**2)
    return np.asarray(np.where(X < 0, tops[0], tops[1]) + fall, np.float32)


def _cavity(patient: Patient, height: float, across: Map, dome: Map) -> Map:
    middle = 0.42
    inner, outer = np.clip(1 - across / middle, 0, 1), np.clip((across - middle) / (1 - middle), 0, 1)
    breadth = np.sqrt(1 - np.maximum(inner * np.sqrt(inner), outer * outer * np.sqrt(outer)))
    deep = 0.30 + 0.70 * np.sqrt(1 - (1 - np.clip(Y / np.float32(0.55 * height), 0, 1)) ** 2)
    deep = np.where(Y > 0, deep * np.sqrt(np.clip(Y / 1.2, 0, 1)), 0)
    thickness = np.float32(1.2 * patient.half_width) * breadth * deep
    below = np.maximum(Y - dome, 0)  # a ray under the silhouette still meets lung before and behind the dome
    return np.asarray(np.maximum(thickness - 2 * np.sqrt(16.0 * below), 0), np.float32)


def heart_bodies(patient: Patient, diaphragm: float, ratio: float, centre: float) -> list[Ellipsoid]:
    """Heart and great vessels as ellipsoids; the heart spans `ratio` of the inner width of the thorax."""
    breadth = 2 * patient.half_width * ratio
    right = breadth * 0.335
    left = breadth - right
    turn, flat = 38.0, 0.70
    reach = 0.66 * left
    a = reach / float(np.sqrt(np.cos(np.deg2rad(turn)) ** 2 + (flat * np.sin(np.deg2rad(turn))) ** 2))
    low = a * float(np.sqrt(np.sin(np.deg2rad(turn)) ** 2 + (flat * np.cos(np.deg2rad(turn))) ** 2))
    y = diaphragm + 2.2 - low
    deep = 1.12 * breadth
    knob = patient.aorta
    arch = 0.31 * patient.lung_height
    return [
        Ellipsoid(centre + left - reach, y, a, flat * a, deep, turn),
        Ellipsoid(centre - right + 0.55 * right, y - 0.3, 0.62 * right, 0.85 * low, 0.75 * deep, 8),
        Ellipsoid(centre + 0.5, y - 0.75 * low, 0.34 * breadth, 0.7 * low, 0.7 * deep, 30),
        Ellipsoid(centre + 0.13 * breadth, arch + 4.1, 2.2, 3.2, 6.0, -8),  # pulmonary trunk
        Ellipsoid(1.25 + 0.5 * centre, arch + 0.2, 1.9 * knob, 2.2 * knob, 6.0, 0),  # aortic knob
        Ellipsoid(-1.3 * knob + centre, arch + 2.5, 1.6, 6.5, 5.0, -3),  # superior vena cava, ascending aorta
        Ellipsoid(1.5, arch + 7.0, 1.25, 8.5, 3.0, 2),  # descending aorta
        Ellipsoid(0.5 * centre, 1.5, 2.5, 9.5, 7.0, 0),  # upper mediastinum and neck vessels
    ]


def airways(patient: Patient, pose: Pose) -> Map:
    """The thickness in cm of air in the trachea and the main bronchi."""
    carina, x = 0.33 * patient.lung_height, 0.45 * pose.turn
    pipes = [
        (spline([(x, TOP), (x, 0.4 * carina), (x - 0.35, carina)], 280), 0.85),
        (spline([(x - 0.4, carina), (x - 1.8, carina + 1.6), (x - 3.6, carina + 3.0)], 70), 0.62),
        (spline([(x - 0.3, carina), (x + 2.0, carina + 1.4), (x + 4.4, carina + 2.4)], 80), 0.55),
    ]
    return splat([tubes(px, py, radius, 2.3 * radius, across=45) for (px, py), radius in pipes])


def body_outline(patient: Patient, pose: Pose) -> Map:
    """The thickness in cm of the body from front to back, as if it were all soft tissue."""
    ax = np.abs(X)
    depth = 1.42 * patient.half_width + 1.1 * patient.girth
    trunk = patient.half_width + 0.6 + 0.75 * patient.girth
    sleeve = (8.0 if pose.supine else 5.5) * np.exp(-np.square((Y + 1.0) / 6.0))
    breadth = np.sqrt(np.maximum(1 - np.square(np.square(ax / (trunk + sleeve))), 0))
    shoulder = -6.2 + 0.22 * np.maximum(ax - 5.5, 0) + 0.012 * np.maximum(ax - 5.5, 0) ** 2
    cover = np.sqrt(np.clip((Y - shoulder) / (5.0 + 0.3 * ax), 0, 1))
    out = depth * breadth * cover
    neck = 11.5 * np.sqrt(np.maximum(1 - (ax / 6.2) ** 2, 0)) * np.clip((6 - Y) / 8, 0, 1)
    out = np.maximum(out, neck)
    if pose.supine:
        out = np.maximum(out, _arms(trunk))
    return np.asarray(out + _breasts(patient, pose) + _muscles(patient), np.float32)


def _arms(trunk: float) -> Map:
    """Upper arms beside the trunk, as upright cylinders that lean outwards."""
    axis = trunk + 2.2 + 0.14 * np.maximum(Y, 0)
    across = np.square((np.abs(X) - axis) / 4.4)
    return np.asarray(9.0 * np.sqrt(np.maximum(1 - across, 0)) * np.clip((Y + 2) / 6, 0, 1), np.float32)


def _breasts(patient: Patient, pose: Pose) -> Map:
    if patient.breast <= 0:
        return empty()
    size, hang = 3.6 + 2.0 * patient.breast, 1.2 if pose.supine else 0.0
    y = 0.66 * patient.lung_height - hang
    places = [Ellipsoid(side * (0.62 * patient.half_width + 2 * hang), y, size, 0.85 * size, 1) for side in (-1, 1)]
    out = empty()
    for place in places:
        radius = np.sqrt(np.square((X - place.x) / place.a) + np.square((Y - place.y) / place.b))
        soft = smoothstep(1.0, 0.55, radius.astype(np.float32))
        under = 0.35 + 0.65 * smoothstep(-place.b, 0.6 * place.b, (Y - place.y).astype(np.float32))
        out += np.float32(2.6 * patient.breast) * soft * under
    return out


def _muscles(patient: Patient) -> Map:
    """The pectoral muscles: a veil over the upper lateral lung."""
    strength = 1.3 if patient.sex == "M" else 0.5
    edge = 12.5 - 0.55 * np.abs(np.abs(X) - 11.0)
    veil = smoothstep(3.0, 9.0, np.abs(X)) * smoothstep(1.5, -1.5, (Y - edge).astype(np.float32))
    return np.asarray(np.float32(strength) * veil, np.float32)
