"""Phantoms to look at: a sheet of thumbnails with captions, and small example pictures for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sim.hospitals_style import style_of
from sim.phantom import draw_lesions, draw_patient, draw_pose, radiograph
from sim.phantom_detector import Scanner
from sim.phantom_patient import FINDINGS, NO_FINDING
from sim.phantom_strokes import Map

KINDS = 3  # of hospitals, each a row of the contact sheet


def contact_sheet(path: Path, *, seed: int = 0, side: int = 300) -> Path:
    """Write a PNG with an example of every finding (columns) as each kind of hospital shows it (rows); returns `path`.

    `side` is the thumbnails' size in pixels; ValueError below 16.
    """
    pictures = []
    for index in range(KINDS):
        style = style_of(index, seed)
        for finding in FINDINGS:
            rng = np.random.default_rng((seed, 5, index, FINDINGS.index(finding)))
            image = _example(rng, finding, style.scanner, style.ages, supine=style.supine)
            pictures.append((f"{finding} ({style.name})", image))
    path.parent.mkdir(parents=True, exist_ok=True)
    thumbnails(pictures, columns=len(FINDINGS), side=side).save(path)
    return path


def example_pictures(image_size: int, seed: int = 0) -> NDArray[np.uint8]:
    """One phantom for each finding, `No Finding` first, as a model sees them: uint8 [6, image_size, image_size]."""
    examples = []
    for index, finding in enumerate(FINDINGS):
        rng = np.random.default_rng((seed, 6, index))
        side = max(image_size, 256)
        image = _example(rng, finding, Scanner(side, side, 39.0), (20, 85), supine=0.0)
        small = Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BOX)
        examples.append(np.asarray(small, np.float32))
    return np.asarray((np.stack(examples) * 255).round(), np.uint8)


def thumbnails(pictures: Sequence[tuple[str, Map]], *, columns: int = 6, side: int = 220) -> Image.Image:
    """Thumbnails with captions on one sheet; `pictures` are (caption, picture 0 to 1), `side` the thumbnail's pixels.

    Raises ValueError when there is no picture or a size is not positive.
    """
    if not pictures or columns < 1 or side < 16:
        raise ValueError(
            f"thumbnails: expected pictures, columns of at least 1 and side of at least 16, found {len(pictures)} "
            f"pictures, columns {columns}, side {side}"
        )
    columns = min(columns, len(pictures))
    caption = max(side // 19, 9)
    font = ImageFont.load_default(caption)
    width, height = side + 6, side + 2 * caption
    sheet = Image.new("L", (columns * width, math.ceil(len(pictures) / columns) * height), 24)
    for index, (text, picture) in enumerate(pictures):
        small = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        x, y = index % columns * width, index // columns * height
        sheet.paste(small, (x + (width - small.width) // 2, y + (side - small.height) // 2))
        ImageDraw.Draw(sheet).text((x + width / 2, y + side + 2), text, fill=220, font=font, anchor="ma")
    return sheet


def _example(rng: np.random.Generator, finding: str, scanner: Scanner, ages: tuple[int, int], *, supine: float) -> Map:
    """A picture with one clear finding: lesions of more than the middle size."""
    patient = draw_patient(rng, ages=ages)
    lesions = draw_lesions(rng, () if finding == NO_FINDING else (finding,))
    clear = tuple(replace(lesion, size=max(lesion.size, 0.5)) for lesion in lesions)
    return radiograph(patient, clear, draw_pose(rng, supine=bool(rng.random() < supine)), scanner, rng)
