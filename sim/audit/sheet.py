"""A contact sheet of what was recovered: each original beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_PAIRS = 4  # of a view, at most
_SIDE, _GAP, _LINE = 112, 4, 18


def sheet(views: Sequence[Mapping[str, Any]], arrays: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Image.Image:
    """A row for each view: its name, then up to four originals, each with what was recovered of it on its right."""
    pair = 2 * _SIDE + 3 * _GAP
    height = _SIDE + 2 * _LINE + _GAP
    most = max((len(each["truth"]) for each in arrays.values()), default=0)
    result = Image.new("L", (max(2, min(most, _PAIRS)) * pair, max(1, len(views)) * height), 24)
    font = ImageFont.load_default(13)
    for row, view in enumerate(views):
        top = row * height
        ImageDraw.Draw(result).text((_GAP, top + 2), f"{view['name']}: {view['best']}", fill=255, font=font)
        shown = arrays[view["name"]]
        likeness = view["attempts"][view["best"]]
        for column, (truth, found) in enumerate(list(zip(shown["truth"], shown["recovered"], strict=True))[:_PAIRS]):
            left = column * pair
            for index, picture in enumerate((truth, found)):
                result.paste(_small(picture), (left + _GAP + index * (_SIDE + _GAP), top + _LINE))
            text = f"{likeness['psnr'][column]:.1f} dB, SSIM {likeness['ssim'][column]:.2f}"
            ImageDraw.Draw(result).text(
                (left + 2 * _GAP + _SIDE, top + _LINE + _SIDE), text, fill=200, font=ImageFont.load_default(11)
            )
    return result


def _small(picture: NDArray[np.float32]) -> Image.Image:
    grey = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    return grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
