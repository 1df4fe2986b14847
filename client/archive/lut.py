"""From stored values to display values: the grey-scale pipeline of PS3.3 C.11.

Each step is a function on an array of values, so that it can be applied to a table of all possible stored values once, and the
table to the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

Floats = NDArray[np.float64]
Step = Callable[[Floats], Floats]


def modality(dataset: Dataset) -> Step:
    """Modality LUT (C.11.1.1): a table, or rescale slope and intercept; identity where neither is there."""
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        table, first = read_table(sequence[0], byte_order(dataset))
        return lambda values: _look_up(values, table, first)
    slope, intercept = _number(dataset.get("RescaleSlope"), 1.0), _number(dataset.get("RescaleIntercept"), 0.0)
    if slope == 0:
        slope = 1.0
    return lambda values: values * slope + intercept


def voi_candidates(dataset: Dataset) -> list[Step]:
    """The VOI transformations the header offers (C.11.2), LUTs before windows, each onto 0 to 1."""
    steps: list[Step] = []
    for item in dataset.get("VOILUTSequence") or []:
        table, first = read_table(item, byte_order(dataset))
        shown = table_onto_unit(table, int(item["LUTDescriptor"].value[2]))
        steps.append(lambda values, t=shown, f=first: _look_up(values, t, f))  # type: ignore[misc]  # mypy cannot infer bound defaults
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    for centre, width in zip(_numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth")), strict=False):
        if np.isfinite(centre) and np.isfinite(width) and width >= (1 if function == "LINEAR" else 1e-9):
            steps.append(lambda values, c=centre, w=width: window(values, c, w, function))  # type: ignore[misc]
    return steps


def window(values: Floats, centre: float, width: float, function: str) -> Floats:
    """A window onto 0 to 1: LINEAR (C.11.2.1.2.1), LINEAR_EXACT (C.11.2.1.3.2) or SIGMOID (C.11.2.1.3.1)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def percentile_window(values: Floats, counts: NDArray[np.integer[Any]], low: float = 0.5, high: float = 99.5) -> Step:
    """A window from percentiles of the picture, for headers that offer none that shows it; `counts` weighs the values."""
    order = np.argsort(values)
    share = np.cumsum(counts[order]) / max(1, counts.sum()) * 100
    bottom = float(values[order][min(int(np.searchsorted(share, low)), len(values) - 1)])
    top = float(values[order][min(int(np.searchsorted(share, high)), len(values) - 1)])
    return lambda found: np.clip((found - bottom) / max(top - bottom, 1e-9), 0, 1)


def inverted(dataset: Dataset) -> bool:
    """Whether small values are shown white: MONOCHROME1 (C.7.6.3.1.2), or Presentation LUT Shape INVERSE (C.11.6)."""
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    return photometric == "MONOCHROME1" or str(dataset.get("PresentationLUTShape") or "").strip().upper() == "INVERSE"


def byte_order(dataset: Dataset) -> str:
    """The order of a file's words, < or >, as of LUT entries, which pydicom leaves as they are in the file."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and "TransferSyntaxUID" in meta:
        return ">" if meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    return ">" if dataset.original_encoding[1] is False else "<"


def read_table(item: Dataset, order: str = "<") -> tuple[Floats, int]:
    """The entries of a LUT and the first value it maps (C.11.1.1.1); ValueError where the descriptor does not fit the data."""
    count, first, bits = (int(value) for value in item["LUTDescriptor"].value)
    count = count or 65536
    data = item["LUTData"].value
    if isinstance(data, bytes):
        if order == ">" and item["LUTData"].VR == "OW":
            data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
        table = np.frombuffer(data, np.uint8 if len(data) == count else "<u2").astype(np.float64)
    else:
        table = np.atleast_1d(np.asarray(data, dtype=np.float64))
    if len(table) < count and bits == 8:  # two 8-bit entries in each 16-bit word
        words = table.astype("<u2").tobytes()
        table = np.frombuffer(words, np.uint8).astype(np.float64)
    if len(table) < count or count < 2:
        raise ValueError(f"LUT: expected {count} entries, found {len(table)}")
    return table[:count], first


def table_onto_unit(table: Floats, bits: int) -> Floats:
    """A VOI LUT's entries onto 0 to 1: its outputs run from 0 to 2^bits - 1 (C.11.2.1.1).

    Where the entries exceed that, or reach less than half of it, the declared bits are taken for a mistake, as of those who write
    12-bit entries and declare 16, and the entries' own range is used.
    """
    full = 2.0**bits - 1
    if full / 2 <= float(table.max()) <= full:
        bottom, span = 0.0, full
    else:
        bottom, span = float(table.min()), float(table.max() - table.min()) or 1.0
    found: Floats = (table - bottom) / span
    return found


def _look_up(values: Floats, table: Floats, first: int) -> Floats:
    if first > 32767 and float(values.min()) < 0:
        first -= 65536  # written unsigned in a picture of unsigned stored values whose rescaled values are signed
    found: Floats = table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)]
    return found


def _number(value: Any, default: float) -> float:
    found = _numbers(value)
    return found[0] if found and np.isfinite(found[0]) else default


def _numbers(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    try:
        return [float(number) for number in values]
    except (TypeError, ValueError):
        return []
