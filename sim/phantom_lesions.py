"""What disease does to the chest: fluid, air, dense lung and round masses, as changes of density along the ray."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sim.phantom_anatomy import LUNG_DENSITY, Chest
from sim.phantom_patient import CARDIOMEGALY, CONSOLIDATION, EFFUSION, NODULE, PNEUMOTHORAX, Lesion, Patient, Pose
from sim.phantom_strokes import COLUMNS, PITCH, ROWS, Map, X, Y, empty, smoothstep, splat, spline, tubes

AIR_DENSITY = 0.06  # of a pleural space filled with air; not 0, since some lung lies before and behind it


@dataclass
class Tissue:
    """The lungs while they are drawn: density 0 to 1 of water, and centimetres of water on top; changed in place."""

    density: Map
    extra: Map
    vessels: Map


def heart_ratio(patient: Patient, lesions: tuple[Lesion, ...]) -> float:
    """The cardiothoracic ratio to draw: the patient's own, or 0.55 to 0.68 with cardiomegaly."""
    sizes = [lesion.size for lesion in lesions if lesion.finding == CARDIOMEGALY]
    return 0.55 + 0.13 * max(sizes) if sizes else patient.heart_ratio


def apply_lesions(tissue: Tissue, lesions: tuple[Lesion, ...], chest: Chest, pose: Pose) -> None:
    """Draw each lesion into the tissue; cardiomegaly is in the chest's heart already."""
    order = (CONSOLIDATION, NODULE, PNEUMOTHORAX, EFFUSION)  # fluid and air displace the lung that was diseased before
    draw = {CONSOLIDATION: _consolidate, NODULE: _nodule, PNEUMOTHORAX: _pneumothorax, EFFUSION: _effusion}
    for lesion in sorted((one for one in lesions if one.finding in draw), key=lambda one: order.index(one.finding)):
        draw[lesion.finding](tissue, lesion, chest, pose)


def lesion_place(lesion: Lesion, chest: Chest) -> tuple[float, float]:
    """Where a lesion's centre lies on the canvas: x and y in cm."""
    top = chest.tops[0] if lesion.side < 0 else chest.tops[1]
    y = lesion.down * top
    lateral, medial = (float(np.interp(y, Y[:, 0], edge[:, 0])) for edge in (chest.lateral, chest.medial))
    return lesion.side * (medial + lesion.across * (lateral - medial)), y


def _side(lesion: Lesion) -> Map:
    return np.asarray(lesion.side * X > 0, np.float32)


def _effusion(tissue: Tissue, lesion: Lesion, chest: Chest, pose: Pose) -> None:
    """Fluid that sinks to the base and climbs the wall (the meniscus); in a lying patient a veil, thicker downwards."""
    top = chest.tops[0] if lesion.side < 0 else chest.tops[1]
    across = np.clip(chest.across, 0, 1)
    level = top + 2.4 - (1.3 + 10.0 * lesion.size)
    surface = level + 3.4 - 4.6 * across**2.5 - 1.0 * (1 - across) ** 4
    soft = (6.0, 0.75) if pose.supine else (2.8, 1.0)
    fill = soft[1] * smoothstep(0.0, soft[0], (Y - surface + 0.3 * soft[0]).astype(np.float32)) * _side(lesion)
    if pose.supine:
        fill = np.maximum(fill, _side(lesion) * smoothstep(0.0, 1.5, (Y - top - 1.0).astype(np.float32)))
    tissue.density += (1 - tissue.density) * fill
    tissue.vessels *= 1 - 0.9 * fill


def _pneumothorax(tissue: Tissue, lesion: Lesion, chest: Chest, pose: Pose) -> None:
    """Air between wall and lung: a thin visceral line, no vessels beyond it, the lung behind it a little denser."""
    top = chest.tops[0] if lesion.side < 0 else chest.tops[1]
    apical = smoothstep(0.55 * top, 0.05 * top, Y)
    if lesion.size < 0.35:  # apical only
        gap = (1.6 + 5.0 * lesion.size) * apical - 0.25
    else:
        gap = (0.8 + 4.2 * lesion.size) + (1.0 + 1.4 * lesion.size) * apical
    gap = gap + 0.15 * np.sin(Y / 1.7 + lesion.seed % 7)
    beyond = smoothstep(0.08, -0.08, (chest.wall - gap).astype(np.float32)) * _side(lesion)
    shrunk = 1 + 0.45 * lesion.size
    tissue.density = np.where(_side(lesion) > 0, np.minimum(tissue.density * shrunk, 1), tissue.density)
    tissue.density += (AIR_DENSITY - tissue.density) * beyond
    tissue.vessels *= 1 - beyond
    line = np.exp(-np.square((chest.wall - gap) / 0.10)) * (gap > 0.3) * _side(lesion)
    tissue.extra += np.float32(0.75) * line * smoothstep(0, 2.0, chest.lung)


def _nodule(tissue: Tissue, lesion: Lesion, chest: Chest, pose: Pose) -> None:
    """A ball of 11 to 26 mm with a slightly lobed outline."""
    x, y = lesion_place(lesion, chest)
    radius = 0.55 + 0.75 * lesion.size
    dx, dy = X - np.float32(x), Y - np.float32(y)
    angle = np.arctan2(dy, dx)
    lobes = 1 + 0.07 * np.sin(3 * angle + lesion.seed % 11) + 0.04 * np.sin(5 * angle + lesion.seed % 5)
    ball = 2 * radius * np.sqrt(np.maximum(1 - (dx * dx + dy * dy) / np.square(radius * lobes), 0))
    tissue.extra += (2.0 * np.minimum(ball, chest.cavity)).astype(np.float32)


def _consolidate(tissue: Tissue, lesion: Lesion, chest: Chest, pose: Pose) -> None:
    """Airless lung: a cloudy patch that hides the vessels and in which air-filled bronchi may stay dark."""
    rng = np.random.default_rng(lesion.seed)
    x, y = lesion_place(lesion, chest)
    size = 3.0 + 3.8 * lesion.size
    spots = 9
    where = rng.normal(0, 0.42 * size, (spots, 2)) * (1.0, 0.85) + (x, y)
    cloud = empty()
    for (px, py), spread in zip(where, rng.uniform(0.35, 0.65, spots) * size, strict=True):
        cloud += np.exp(-np.square((X - px) / spread)) * np.exp(-np.square((Y - py) / (0.85 * spread)))
    cloud *= (1 + 0.20 * cloud_noise(rng, 1.8) + 0.10 * cloud_noise(rng, 0.8)) / cloud.max()
    fill = smoothstep(0.02, 0.85, cloud) * _side(lesion)
    if rng.random() < 0.35 and lesion.down < 0.5:  # a fissure bounds the lobe below
        fill *= smoothstep(0.25, -0.1, (Y - y - 0.4 * size - 0.05 * (np.abs(X) - abs(x))).astype(np.float32))
    if rng.random() < 0.6:
        fill = fill * (1 - 0.5 * np.minimum(_bronchi(rng, lesion, x, y, size), 1))
    tissue.density += (0.95 - tissue.density) * (0.55 + 0.2 * lesion.size) * fill
    tissue.vessels *= 1 - 0.8 * fill


def _bronchi(rng: np.random.Generator, lesion: Lesion, x: float, y: float, size: float) -> Map:
    out = []
    for spread in rng.uniform(-0.8, 0.8, 3):
        end = (x + lesion.side * 0.5 * size, y + spread * size)
        px, py = spline([(lesion.side * 3.4, 9.5), (0.5 * (x + lesion.side * 3.4), 0.5 * (y + 9.5) + 0.3), end], 90)
        width = np.linspace(0.22, 0.09, px.shape[1], dtype=np.float32)[None, :]
        out.append(tubes(px, py, width, 1.0, across=5))
    return splat(out)


def cloud_noise(rng: np.random.Generator, size: float) -> Map:
    """Smooth noise of unit deviation with clouds of about `size` cm, [ROWS, COLUMNS]."""
    step = max(round(size / PITCH / 2), 1)
    coarse = rng.standard_normal((ROWS // step + 2, COLUMNS // step + 2), dtype=np.float32)
    fine = Image.fromarray(coarse).resize((coarse.shape[1] * step, coarse.shape[0] * step), Image.Resampling.BICUBIC)
    smooth = np.asarray(fine)[:ROWS, :COLUMNS]
    return np.asarray(smooth / smooth.std(), np.float32)


def healthy(chest: Chest, vessels: Map) -> Tissue:
    """The lungs before any lesion is drawn."""
    return Tissue(np.full((ROWS, COLUMNS), LUNG_DENSITY, np.float32), empty(), vessels)
