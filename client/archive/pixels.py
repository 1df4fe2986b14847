"""From a DICOM data set or a picture file to the 8-bit picture a model is trained on."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import RLELossless

from client.archive.decode import MOST_PIXELS, stored_values
from client.archive.lut import Step, inverted, modality, percentile_window, voi_candidates
from client.archive.reasons import Excluded, Reason
from client.archive.select import Rules
from cxrbase_model.plan import DataSpec

Picture = NDArray[np.uint8]

# a window that shows less than a tenth of the picture's pixels between its ends, or them within so few levels of 256, is not meant for it
_MOST_CLIPPED = 0.9
_LEAST_CONTRAST = 24
_GREY_TOLERANCE = 8  # lossy colour JPEG of a grey picture differs between channels by less


def render(dataset: Dataset, rules: Rules | None = None) -> Picture:
    """The picture as a viewer shows it, uint8 [H, W], bone white, pixels square; Excluded with the reason otherwise."""
    rules = rules or Rules()
    values = stored_values(dataset)
    if values.ndim == 3 or "PALETTE" in str(dataset.get("PhotometricInterpretation", "")):
        picture = _grey(dataset, values)
    else:
        picture = _display(dataset, values)
    picture = square_pixels(dataset, picture)
    check_content(picture, rules.minimum_size)
    return picture


def decode_image_file(data: bytes, rules: Rules | None = None) -> Picture:
    """An 8- or 16-bit grey PNG or JPEG as uint8 [H, W]; 16 bits are windowed to their percentiles."""
    rules = rules or Rules()
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Excluded(Reason.TOO_LARGE)
            values = np.asarray(image.convert("I") if image.mode.startswith("I") else image.convert("RGB"))
    except Excluded:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError):
        raise Excluded(Reason.UNREADABLE) from None
    if values.ndim == 3:
        picture = _grey_of(values.astype(np.uint8))
    else:
        picture = _through_table(np.clip(values, 0, 65535).astype(np.uint16), None, [], invert=False)
    check_content(picture, rules.minimum_size)
    return picture


def fit(picture: Picture, spec: DataSpec) -> Picture:
    """The picture at the plan's size, uint8 [S, S], antialiased.

    `crop` and `shortest` show the same field, cut before the resize or after it: a cache holds squares alone, so what
    lies beyond the square is not kept for crops at training time. Padding stays black and counts for no grey value.
    """
    if spec.remove_borders:
        picture = without_borders(picture)
    if spec.intensity == "equalize":
        picture = equalized(picture)
    height, width = picture.shape
    size = spec.image_size
    if spec.aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        picture = picture[top : top + side, left : left + side]
    if spec.aspect in ("crop", "stretch"):
        return _resize(picture, size, size)
    scale = size / (min(height, width) if spec.aspect == "shortest" else max(height, width))
    resized = _resize(picture, max(1, round(height * scale)), max(1, round(width * scale)))
    if spec.aspect == "shortest":
        top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
        return resized[top : top + size, left : left + size]
    padded = np.zeros((size, size), np.uint8)
    top, left = (size - resized.shape[0]) // 2, (size - resized.shape[1]) // 2
    padded[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return padded


def equalized(picture: Picture) -> Picture:
    """The picture, uint8 [H, W], with each grey level about as often as any other (histogram equalisation), in its order."""
    return np.asarray(ImageOps.equalize(Image.fromarray(picture)))


def without_borders(picture: Picture, level: int = 12) -> Picture:
    """The picture without the black rows and columns a collimator leaves; whole where less than a quarter would remain."""
    bright = picture > level
    rows, columns = np.flatnonzero(bright.mean(axis=1) > 0.02), np.flatnonzero(bright.mean(axis=0) > 0.02)
    if len(rows) * len(columns) < picture.size / 4:
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def square_pixels(dataset: Dataset, picture: Picture) -> Picture:
    """Apply (0028,0034) Pixel Aspect Ratio, vertical to horizontal, or the ratio of the spacings (C.7.6.3.1.7)."""
    ratio = dataset.get("PixelAspectRatio") or dataset.get("ImagerPixelSpacing") or dataset.get("PixelSpacing")
    try:
        vertical, horizontal = (float(value) for value in ratio)
        stretch = vertical / horizontal
    except (TypeError, ValueError, ZeroDivisionError):
        return picture
    if not 0.1 < stretch < 10 or abs(stretch - 1) < 0.01:
        return picture
    height, width = picture.shape
    if picture.size * max(stretch, 1 / stretch) > MOST_PIXELS:
        raise Excluded(Reason.TOO_LARGE)
    return (
        _resize(picture, round(height * stretch), width)
        if stretch > 1
        else _resize(picture, height, round(width / stretch))
    )


def check_content(picture: Picture, minimum_size: int) -> None:
    """Excluded where a picture is too small, shows next to nothing, or is black or white nearly everywhere."""
    if min(picture.shape) < minimum_size:
        raise Excluded(Reason.TOO_SMALL)
    sample = picture[:: max(1, picture.shape[0] // 512), :: max(1, picture.shape[1] // 512)]
    if float(sample.std()) < 4:
        raise Excluded(Reason.BLANK)
    if max(float((sample <= 2).mean()), float((sample >= 253).mean())) > 0.9:
        raise Excluded(Reason.SATURATED)


def _display(dataset: Dataset, values: NDArray[Any]) -> Picture:
    padding = _padding(dataset, signed=values.dtype.kind == "i")
    rescale = modality(dataset)
    stored: Step | None = None
    if values.dtype.itemsize > 2:
        values, stored = _in_16_bits(values)
    return _through_table(
        values, rescale, voi_candidates(dataset), invert=inverted(dataset), padding=padding, stored=stored
    )


def _through_table(
    values: NDArray[Any],
    rescale: Step | None,
    candidates: list[Step],
    *,
    invert: bool,
    padding: tuple[int, int] | None = None,
    stored: Step | None = None,
) -> Picture:
    """Map every possible stored value once, then the picture through that table; `stored` undoes a change of scale first."""
    width = 8 * values.dtype.itemsize
    keys = values.view(f"u{values.dtype.itemsize}")
    possible = np.arange(2**width, dtype=np.uint32).astype(keys.dtype).view(values.dtype).astype(np.float64)
    possible = possible if stored is None else stored(possible)
    step = max(1, int((values.size / 250_000) ** 0.5))
    counts = np.bincount(keys[::step, ::step].ravel(), minlength=len(possible))
    if padding is not None:
        counts = np.where((possible >= padding[0]) & (possible <= padding[1]), 0, counts)
    meant = rescale(possible) if rescale is not None else possible
    shown = _shown(meant, counts, candidates)
    table = np.rint((1 - shown if invert else shown) * 255).astype(np.uint8)
    if padding is not None:
        table[(possible >= padding[0]) & (possible <= padding[1])] = 0
    mapped: Picture = table[keys]
    return mapped


def _shown(meant: NDArray[np.float64], counts: NDArray[Any], candidates: list[Step]) -> NDArray[np.float64]:
    """The first candidate that shows the picture, or a window from its percentiles."""
    for candidate in candidates:
        shown = np.clip(candidate(meant), 0, 1)
        levels = np.bincount(np.rint(shown * 255).astype(np.intp), weights=counts, minlength=256)
        share = np.cumsum(levels) / max(1, counts.sum())
        darkest, brightest = np.searchsorted(share, (0.01, 0.99))  # a marker is no contrast
        if levels[[0, 255]].sum() < _MOST_CLIPPED * counts.sum() and brightest - darkest >= _LEAST_CONTRAST:
            return shown
    return percentile_window(meant, counts)(meant)


def _padding(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """(0028,0120) Pixel Padding Value and (0028,0121) Range Limit, in stored values (C.7.5.1.1.2)."""
    try:
        value = int(dataset["PixelPaddingValue"].value)
        limit = int(dataset["PixelPaddingRangeLimit"].value) if "PixelPaddingRangeLimit" in dataset else value
    except (KeyError, TypeError, ValueError):
        return None
    whole = 1 << int(dataset.BitsAllocated)  # some write -2000 as the unsigned 63536, or the other way round
    bottom = -whole // 2 if signed else 0
    value, limit = ((number - bottom) % whole + bottom for number in (value, limit))
    return min(value, limit), max(value, limit)


def _in_16_bits(values: NDArray[Any]) -> tuple[NDArray[Any], Step | None]:
    """Wider values in 16 bits, and what brings those back to the stored values, None where they are the same."""
    low, high = int(values.min()), int(values.max())
    for narrow in (np.uint16, np.int16):
        if np.iinfo(narrow).min <= low and high <= np.iinfo(narrow).max:
            return values.astype(narrow), None
    scale = (high - low) / 65535
    return np.rint((values - float(low)) / scale).astype(np.uint16), lambda found: found * scale + low


def _grey(dataset: Dataset, values: NDArray[Any]) -> Picture:
    """The luminance of a colour picture that holds no colour; Excluded(COLOUR) otherwise."""
    if values.ndim == 2:
        values = apply_color_lut(values, dataset)
    if values.dtype.itemsize > 1:
        values = values >> (8 * (values.dtype.itemsize - 1))
    values = values.astype(np.uint8)
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
    syntax = dataset.file_meta.TransferSyntaxUID
    if photometric.startswith("YBR") and (not syntax.is_compressed or syntax == RLELossless):
        neutral = np.concatenate([values[..., :1], values[..., 1:].astype(np.int16) + values[..., :1] - 128], axis=2)
        return _grey_of(neutral[..., [1, 0, 2]])  # a chroma of 128 is no colour (C.7.6.3.1.2)
    return _grey_of(values)


def _grey_of(values: NDArray[Any]) -> Picture:
    channels = values.astype(np.int16)
    spread = channels.max(axis=2) - channels.min(axis=2)
    if float(np.quantile(spread[:: max(1, len(spread) // 256)], 0.99)) > _GREY_TOLERANCE:
        raise Excluded(Reason.COLOUR)
    return np.ascontiguousarray(values[..., 1].astype(np.uint8))


def _resize(picture: Picture, height: int, width: int) -> Picture:
    """Antialiased to the given size (Pillow; a box reduction first where the picture is much larger)."""
    image = Image.fromarray(np.ascontiguousarray(picture)).resize(
        (width, height), Image.Resampling.BICUBIC, reducing_gap=3.0
    )
    return np.asarray(image)
