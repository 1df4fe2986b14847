"""ROC curves and bounds as inline SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from server.charts import Scale

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT, _TOP = 420, 330, 52, 36, 24, 12
_NAMES, _ROW = 190, 26


def roc_chart(curves: Mapping[str, Sequence[tuple[float, float]]], lowest: float, *, title: str) -> Markup:
    """ROC curves on logarithmic axes from `lowest` to 1, where an attack that is sure of a few shows; the dashed line is guessing."""
    x_of = Scale(math.log10(lowest), 0.0, _LEFT, _WIDTH - _RIGHT)
    y_of = Scale(math.log10(lowest), 0.0, _HEIGHT - _BOTTOM, _TOP)
    parts = [f"<svg role=img viewBox='0 0 {_WIDTH} {_HEIGHT}'><title>{escape(title)}</title>"]
    for power in range(math.ceil(math.log10(lowest)), 1):
        x, y, label = x_of(power), y_of(power), f"{100 * 10.0**power:g} %"
        parts.append(f"<line class=grid x1={_LEFT} x2={_WIDTH - _RIGHT} y1={y:.1f} y2={y:.1f} />")
        parts.append(f"<line class=grid x1={x:.1f} x2={x:.1f} y1={_TOP} y2={_HEIGHT - _BOTTOM} />")
        parts.append(f"<text x={_LEFT - 6} y={y + 4:.1f} text-anchor=end>{label}</text>")
        parts.append(f"<text x={x:.1f} y={_HEIGHT - _BOTTOM + 16} text-anchor=middle>{label}</text>")
    parts.append(f"<line class=chance x1={_LEFT} x2={_WIDTH - _RIGHT} y1={_HEIGHT - _BOTTOM} y2={_TOP} />")
    for index, (name, curve) in enumerate(curves.items()):
        steps = _clipped(curve, lowest)
        places = " ".join(f"{x_of(math.log10(x)):.1f},{y_of(math.log10(y)):.1f}" for x, y in steps)
        parts.append(f"<g class=c{index % 6}><title>{escape(name)}</title><polyline points='{places}' /></g>")
    parts.append(
        f"<text x={(_LEFT + _WIDTH) / 2:.0f} y={_HEIGHT - 4} text-anchor=middle>called members, of those outside</text>"
    )
    return Markup("".join(parts) + "</svg>")


def _clipped(curve: Sequence[tuple[float, float]], lowest: float) -> list[tuple[float, float]]:
    """A curve as steps, with what is below the axes on them."""
    found: list[tuple[float, float]] = []
    for x, y in curve:
        place = (max(x, lowest), max(y, lowest))
        if found:
            found.append((place[0], found[-1][1]))
        found.append(place)
    return found


def bounds_chart(rows: Sequence[Mapping[str, Any]], *, title: str) -> Markup:
    """For each row the span from a lower bound to the upper one, where there is one; `low`, `high` (or None) and `name`."""
    highest = max([1.0, *(row["high"] or row["low"] for row in rows)]) * 1.05
    x_of = Scale(0.0, highest, _NAMES, _WIDTH - _RIGHT)
    height = _TOP + len(rows) * _ROW + _BOTTOM
    parts = [f"<svg role=img viewBox='0 0 {_WIDTH} {height}'><title>{escape(title)}</title>"]
    step = 10.0 ** math.floor(math.log10(highest))
    step = step if highest / step >= 3 else step / 4
    for number in range(int(highest / step) + 1):
        x = x_of(number * step)
        parts.append(f"<line class=grid x1={x:.1f} x2={x:.1f} y1={_TOP - 6} y2={height - _BOTTOM} />")
        parts.append(f"<text x={x:.1f} y={height - _BOTTOM + 16} text-anchor=middle>{number * step:g}</text>")
    for index, row in enumerate(rows):
        y = _TOP + (index + 0.5) * _ROW
        parts.append(f"<text x={_NAMES - 8} y={y + 4:.1f} text-anchor=end>{escape(row['name'])}</text>")
        end = x_of(row["high"]) if row["high"] is not None else _WIDTH - _RIGHT
        dashes = "" if row["high"] is not None else " stroke-dasharray='4 4'"
        parts.append(f"<g class=c{index % 6}><line x1={x_of(row['low']):.1f} x2={end:.1f} y1={y} y2={y}{dashes} />")
        parts.append(f"<circle class=dot cx={x_of(row['low']):.1f} cy={y} r=4 />")
        if row["high"] is not None:
            parts.append(f"<line x1={end:.1f} x2={end:.1f} y1={y - 6} y2={y + 6} />")
        parts.append("</g>")
    parts.append(f"<text x={(_NAMES + _WIDTH) / 2:.0f} y={height - 2} text-anchor=middle>epsilon</text>")
    return Markup("".join(parts) + "</svg>")
