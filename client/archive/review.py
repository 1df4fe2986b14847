"""The page by which a hospital looks at its own ingest: pictures, distributions, labels and what was left out.

It holds pictures and file names, so it lies in the private folder, is its owner's alone, and nothing reads it but a person.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image

from client.archive.cache import VIEWS
from client.archive.identity import AGE_BANDS, SCANNERS, SEXES
from client.archive.manifest import Entry
from client.archive.reasons import Reason

Picture = NDArray[np.uint8]

_PICTURES, _THUMBNAIL = 60, 160
_PER_SCANNER = 40  # pictures behind a curve
_EXAMPLES, _DEVICES = 3, 12
_BINS = 64


@dataclass(frozen=True)
class Review:
    """What the page is made of: exact figures, as the hospital sees them.

    used: the pictures in the order of the cache. labels: float32 [N, C], NaN where unknown. findings: names to counts.
    excluded: reason to count. left_out: file name and reason of each file.
    """

    site: str
    side: int
    used: list[Entry]
    labels: NDArray[np.float32]
    findings: Mapping[str, Mapping[str, int]]
    splits: Mapping[str, int]
    patients: int
    labelled: int
    unmatched: int
    excluded: Mapping[str, int]
    left_out: Iterable[tuple[str, str]]


def page(review: Review, picture_of: Callable[[Entry], Picture]) -> str:
    """The page as HTML that fetches nothing; `picture_of` reads a used picture, uint8 [S, S]."""
    environment = Environment(
        loader=PackageLoader("client.archive"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = _spread(len(review.used), _PICTURES)
    return environment.get_template("ingest.html").render(
        site=review.site,
        side=review.side,
        used=len(review.used),
        patients=review.patients,
        splits=", ".join(f"{count} {name}" for name, count in review.splits.items()),
        left_out=sum(review.excluded.values()),
        sizes=_sizes(review.used),
        pictures=[
            {"png": _png(picture_of(review.used[row])), "text": _caption(review.used[row], review.labels[row], review)}
            for row in shown
        ],
        curves=_curves(review.used, picture_of),
        distributions=_distributions(review.used),
        labelled=review.labelled,
        unmatched=review.unmatched,
        findings=list(review.findings.items()),
        exclusions=_exclusions(review),
    )


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` rows, evenly over all; the cache's order is by keyed hash, so they are as good as random."""
    return sorted({int(row) for row in np.linspace(0, count - 1, min(count, most))}) if count else []


def _png(picture: Picture) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _caption(entry: Entry, labels: NDArray[np.float32], review: Review) -> str:
    present = [name for name, value in zip(review.findings, labels, strict=True) if value == 1]
    person = f"{VIEWS[entry.view]}, {SEXES[entry.sex]}, {AGE_BANDS[entry.age_band]}"
    return f"{person}: {', '.join(present)}" if present else person


def _sizes(used: list[Entry]) -> str:
    if not used:
        return "-"
    heights, widths = (np.array([getattr(entry, name) for entry in used]) for name in ("height", "width"))
    low, high = (
        f"{width} × {height}" for width, height in ((widths.min(), heights.min()), (widths.max(), heights.max()))
    )
    return f"all {low}" if low == high else f"from {low} to {high}, most often {_most_often(widths, heights)}"


def _most_often(widths: NDArray[Any], heights: NDArray[Any]) -> str:
    ((width, height), _), *_ = Counter(zip(widths.tolist(), heights.tolist(), strict=True)).most_common(1)
    return f"{width} × {height}"


def _curves(used: list[Entry], picture_of: Callable[[Entry], Picture]) -> list[dict[str, Any]]:
    """For each scanner the share of grey values 1 to 254 in some of its pictures, as points of a polyline."""
    curves = []
    for code, scanner in enumerate(SCANNERS):
        entries = [entry for entry in used if entry.scanner == code]
        counts = np.zeros(256)
        for row in _spread(len(entries), _PER_SCANNER):
            counts += np.bincount(picture_of(entries[row]).ravel(), minlength=256)
        counts[[0, 255]] = 0  # collimators and direct exposure
        if counts.sum():
            shares = counts.reshape(_BINS, -1).sum(axis=1) / counts.sum()
            curves.append({"name": scanner, "pictures": len(entries), "shares": shares})
    highest = max((curve["shares"].max() for curve in curves), default=1.0)
    for curve in curves:
        points = (
            (10 + 700 * (bin_ + 0.5) / _BINS, 175 - 165 * share / highest) for bin_, share in enumerate(curve["shares"])
        )
        curve["points"] = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return curves


def _distributions(used: list[Entry]) -> list[tuple[str, list[tuple[str, int, float]]]]:
    if not used:
        return []
    found = []
    classes = {
        "View": ("view", VIEWS),
        "Sex": ("sex", SEXES),
        "Age": ("age_band", AGE_BANDS),
        "Scanner": ("scanner", SCANNERS),
    }
    for title, (name, names) in classes.items():
        counts = Counter(getattr(entry, name) for entry in used)
        found.append((title, [(names[code], counts[code], counts[code] / len(used)) for code in sorted(counts)]))
    devices = Counter(entry.device or "not told" for entry in used).most_common(_DEVICES)
    found.append(("Device, by its own word", [(name, count, count / len(used)) for name, count in devices]))
    return found


def _exclusions(review: Review) -> list[dict[str, Any]]:
    examples: dict[str, list[str]] = {}
    for name, reason in review.left_out:
        some = examples.setdefault(reason, [])
        if len(some) < _EXAMPLES:
            some.append(name.encode("utf-8", "replace").decode("utf-8"))
    return [
        {"reason": reason, "count": count, "meaning": Reason(reason).description, "examples": examples.get(reason, [])}
        for reason, count in review.excluded.items()
    ]
