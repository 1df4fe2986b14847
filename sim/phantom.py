"""Chest-like radiographs with known findings, drawn from anatomy and X-ray physics.

A picture is a pure function of a patient, the patient's lesions, a pose, a scanner and a seeded generator. It exists
to prove the federation end to end where no real picture may be had; it is no substitute for real radiographs, and no
model trained on phantoms means anything for patients.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from sim.phantom_anatomy import Chest, airways, body_outline, build_chest
from sim.phantom_detector import Scanner, expose
from sim.phantom_lesions import apply_lesions, cloud_noise, healthy, heart_ratio
from sim.phantom_patient import FINDINGS, NO_FINDING, Lesion, Patient, Pose, draw_lesions, draw_patient, draw_pose
from sim.phantom_skeleton import bones, vessels
from sim.phantom_strokes import COLUMNS, ROWS, Ellipsoid, Map, X, Y, chords, empty, smoothstep, splat, spline, tubes

__all__ = [
    "FINDINGS",
    "Lesion",
    "Patient",
    "Pose",
    "Scanner",
    "draw_lesions",
    "draw_patient",
    "draw_pose",
    "findings_of",
    "radiograph",
]


def findings_of(lesions: tuple[Lesion, ...]) -> tuple[str, ...]:
    """The findings that the lesions show, in the order of FINDINGS; `No Finding` where there are none."""
    shown = {lesion.finding for lesion in lesions}
    return tuple(finding for finding in FINDINGS if finding in shown) or (NO_FINDING,)


def radiograph(
    patient: Patient, lesions: tuple[Lesion, ...], pose: Pose, scanner: Scanner, rng: np.random.Generator
) -> Map:
    """A frontal chest radiograph, float32 [scanner.rows, scanner.columns], 0 black (air) to 1 white (bone).

    The patient's right is on the left of the picture. `rng` gives the noise and the placing of leads only.
    """
    chest = build_chest(patient, pose, heart_ratio(patient, lesions))
    tissue = healthy(chest, vessels(patient, chest, pose))
    apply_lesions(tissue, lesions, chest, pose)
    inside = smoothstep(0.0, 5.0, chest.cavity)
    water = body_outline(patient, pose) - (1 - tissue.density) * chest.lung - airways(patient, pose)
    water += tissue.extra + tissue.vessels * inside + _texture(patient, chest) - _stomach_bubble(patient, chest, pose)
    bone = bones(patient, pose) + _devices(patient, pose, rng)
    return expose(np.maximum(water, 0), bone, scanner, pose, rng)


def _texture(patient: Patient, chest: Chest) -> Map:
    """The fine mottle of vessels too small to draw, in cm of water."""
    return np.asarray(_mottle(patient.seed) * smoothstep(0, 12, chest.lung), np.float32)


@lru_cache(maxsize=2)  # a patient's pictures are drawn one after the other
def _mottle(seed: int) -> Map:
    rng = np.random.default_rng((seed, 2))
    fine = ndimage.uniform_filter(rng.standard_normal((ROWS, COLUMNS), dtype=np.float32), 3) * np.float32(2.4)
    return np.asarray(0.10 * fine + 0.10 * cloud_noise(rng, 0.5), np.float32)


def _stomach_bubble(patient: Patient, chest: Chest, pose: Pose) -> Map:
    """Gas under the left dome, with a level when standing."""
    rng = np.random.default_rng((patient.seed, 3))
    size, x = rng.uniform(0.0, 2.6), rng.uniform(4.5, 7.5)
    gas = chords([Ellipsoid(x, chest.tops[1] + 2.0 + size, 1.2 * size + 0.1, size + 0.1, 1.6 * size)])
    if not pose.supine:
        gas *= smoothstep(0.15, -0.15, Y - np.float32(chest.tops[1] + 2.2 + size))
    return np.asarray(gas * smoothstep(0.4, 0.8, Y - chest.dome), np.float32)


def _devices(patient: Patient, pose: Pose, rng: np.random.Generator) -> Map:
    """Electrodes with their wires, and a pacemaker: things that are no finding."""
    out, wires = empty(), []
    for x, y in rng.uniform((-13, 2), (13, 22), (pose.leads, 2)).tolist():
        wire = spline([(x, y), (0.8 * x + 2, y + 4), (1.3 * x, y + 12), (1.6 * x, 32.0)], 300)
        wires.append(tubes(*wire, 0.09, 0.45, across=3))
        out += chords([Ellipsoid(x, y, 0.55, 0.55, 1.3)])
    if patient.pacemaker:
        box = np.square(np.square((X - 9.5) / 2.2)) + np.square(np.square((Y - 5.0) / 1.9))
        out += np.float32(1.6) * smoothstep(1.1, 0.9, box)
        lead = spline([(8.0, 4.0), (3.0, 3.0), (-1.8, 6.0), (-1.6, 13.0), (2.5, 18.0)], 400)
        wires.append(tubes(*lead, 0.12, 0.8, across=5))
    return out + splat(wires) if wires else out
