"""From path lengths to a picture: attenuation, scatter, the detector's noise and the maker's processing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sim.phantom_patient import Pose
from sim.phantom_strokes import LEFT, PITCH, TOP, Map

WATER = 0.19  # 1/cm, soft tissue at the effective energy of a 110 kV chest exposure
BONE = 0.46  # 1/cm, cortical bone beyond the soft tissue it displaces


@dataclass(frozen=True)
class Scanner:
    """One acquisition system: its matrix, the field it covers, and how its pictures look."""

    rows: int = 768
    columns: int = 640
    field: float = 38.5  # cm, height of the picture
    gamma: float = 1.0  # above 1 darkens the mid greys
    contrast: float = 1.0  # above 1 narrows the window
    detail: float = 0.5  # how much the maker enhances fine structures
    scatter: float = 0.02  # scattered over open radiation
    noise: float = 0.008  # quantum noise, in the logarithm, behind a lung
    shutter: float = 0.0  # cm cut away at each side, shown black
    marker: str = ""  # burned-in letters

    @property
    def spacing(self) -> float:
        """Distance of two pixels in mm."""
        return 10 * self.field / self.rows


def expose(water: Map, bone: Map, scanner: Scanner, pose: Pose, rng: np.random.Generator) -> Map:
    """The finished picture [rows, columns], 0 (black) to 1 (white), from centimetres of water and of bone."""
    transmitted = np.exp(-(WATER * water + BONE * bone))
    scattered = _box(transmitted, 5.0) * np.float32(0.3) + np.float32(scanner.scatter)
    log = -np.log(transmitted + scattered * np.float32(0.5)).astype(np.float32)
    coarse, fine = log - _box(log, 3.0), log - _box(log, 0.5)
    log += np.float32(scanner.detail) * (np.float32(0.35) * coarse + np.float32(0.9) * fine)
    full = _to_matrix(log, scanner, pose)
    grain = rng.standard_normal(full.shape, dtype=np.float32)
    grain *= np.exp(np.clip(0.5 * full - 0.9, -0.75, 1.25))  # the fewer photons come through, the noisier the logarithm
    grain *= np.float32(scanner.noise)
    full += grain
    return finish(_window(full, scanner), scanner)


def finish(picture: Map, scanner: Scanner) -> Map:
    """Markers and shutters, which lie over everything else."""
    if scanner.marker:
        picture = burn_in(picture, scanner.marker)
    edge = round(scanner.shutter * 10 / scanner.spacing)
    if edge:
        shut = np.zeros_like(picture)
        shut[edge:-edge, edge:-edge] = picture[edge:-edge, edge:-edge]
        picture = shut
    return picture


def burn_in(picture: Map, text: str) -> Map:
    """The picture with the side marker `text` in its upper right corner, as lead letters show."""
    rows, columns = picture.shape
    size = max(rows // 26, 9)
    letters = Image.new("L", (columns, rows))
    font = ImageFont.load_default(size)
    place = (columns - 0.04 * columns, 0.05 * rows)
    ImageDraw.Draw(letters).multiline_text(place, text, fill=255, font=font, anchor="ra", align="right")
    return np.asarray(np.maximum(picture, np.asarray(letters, np.float32) * (0.96 / 255)), np.float32)


def _box(image: Map, size: float) -> Map:
    """The mean over a square of `size` cm; wide squares on a coarser canvas, which nobody can tell."""
    pixels = max(round(size / PITCH), 3)
    if pixels < 12:
        return np.asarray(ndimage.uniform_filter(image, pixels, mode="nearest"), np.float32)
    step = pixels // 6
    height, width = image.shape
    small = Image.fromarray(image).reduce(step)
    mean = ndimage.uniform_filter(np.asarray(small), 6, mode="nearest")
    return np.asarray(Image.fromarray(mean).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def _to_matrix(image: Map, scanner: Scanner, pose: Pose) -> Map:
    """Resample the canvas to the detector: tilted, shifted, with the lung apices an eighth of the way down."""
    wide, high = scanner.field * scanner.columns / scanner.rows / PITCH, scanner.field / PITCH  # canvas pixels
    size = round(wide), round(high)
    angle = np.deg2rad(pose.tilt)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    across, down = wide / size[0], high / size[1]
    x, y = (pose.shift[0] - LEFT) / PITCH, (0.375 * scanner.field + pose.shift[1] - TOP) / PITCH
    matrix = (
        *(cos * across, sin * down, x - cos * wide / 2 - sin * high / 2),
        *(-sin * across, cos * down, y + sin * wide / 2 - cos * high / 2),
    )
    turned = Image.fromarray(image).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.array(turned.resize((scanner.columns, scanner.rows), Image.Resampling.BICUBIC), np.float32)


def _window(full: Map, scanner: Scanner) -> Map:
    """Grey values by the exposure's own histogram, as digital systems choose them, then the maker's curve; in place."""
    rows, columns = full.shape
    middle = full[rows // 6 : -rows // 5 : 6, columns // 5 : -columns // 5 : 6]
    low, high = np.percentile(middle, [2, 97])
    margin = (high - low) * (0.30 / scanner.contrast - 0.08)
    full -= np.float32(low - margin)
    full /= np.float32(high - low + 1.5 * margin)
    np.clip(full, 0, 1, out=full)
    return np.power(full, np.float32(scanner.gamma), out=full)
