"""Charts as inline SVG that follow the page's colours, light or dark; numbers in, markup out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
Interval = Mapping[str, float]  # value, low, high

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 32  # margins of a line chart
_NAMES, _LETTER, _ROW, _GAP = (
    150,
    6.4,
    15,
    9,
)  # a forest plot: least room for names, width of a letter, height of one hospital, gap between groups


def line_chart(series: Mapping[str, Points], *, title: str, across: str, bold: str | None = None) -> Markup:
    """Lines over rounds, one colour for each name in order; `bold` is drawn thicker and in the text's colour.

    `series` are (x, y) by name; points that are not finite are left out. An empty chart says that there is nothing to draw.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return Markup("<p class='quiet'>Nothing to draw.</p>")
    across_values = [x for points in lines.values() for x, _ in points]
    ticks = _ticks(min(values), max(values))
    x_of = Scale(min(across_values), max(across_values), _LEFT, _WIDTH - _RIGHT)
    y_of = Scale(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [_svg_open(_WIDTH, _HEIGHT, title)]
    for tick in ticks:
        y = y_of(tick)
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' />")
        parts.append(f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:.3g}</text>")
    for x in _whole(min(across_values), max(across_values)):
        parts.append(f"<text x='{x_of(x):.1f}' y='{_HEIGHT - _BOTTOM + 16}' text-anchor='middle'>{x}</text>")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{_HEIGHT - 2}' text-anchor='middle'>{escape(across)}</text>")
    colour = 0
    for name, points in lines.items():
        kind = "bold" if name == bold else colour_class(colour)
        colour += name != bold
        place = [(x_of(x), y_of(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
        dots = "".join(f"<circle class='dot' cx='{x:.1f}' cy='{y:.1f}' r='2.5' />" for x, y in place)
        parts.append(f"<g class='{kind}'><title>{escape(name)}</title><polyline points='{path}' />{dots}</g>")
    return Markup("".join(parts) + "</svg>")


def colour_class(number: int) -> str:
    """The classes of a series by its place; after six colours they come again, dashed where the page's style says so."""
    return f"c{number % 6}" if number < 6 else f"c{number % 6} again"


def forest(groups: Mapping[str, Mapping[str, Interval | None]], names: Sequence[str], *, title: str) -> Markup:
    """A forest plot of values from 0 to 1 with intervals: a group for each row name, in it a line for each of `names`.

    None is a value that could not be computed. The dashed line at 0.5 is chance.
    """
    room = max(_NAMES, 14 + math.ceil(_LETTER * max((len(group) for group in groups), default=0)))
    width = _WIDTH + room - _NAMES
    height = _TOP + sum(len(names) * _ROW + _GAP for _ in groups) + _BOTTOM
    x_of = Scale(0.0, 1.0, room, width - _RIGHT)
    parts = [_svg_open(width, height, title)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        kind = "chance" if tick == 0.5 else "grid"
        x = x_of(tick)
        parts.append(f"<line class='{kind}' x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP - 6}' y2='{height - _BOTTOM}' />")
        parts.append(f"<text x='{x:.1f}' y='{height - _BOTTOM + 16}' text-anchor='middle'>{tick:g}</text>")
    top = float(_TOP)
    for group, values in groups.items():
        middle = top + len(names) * _ROW / 2
        parts.append(f"<text x='{room - 8}' y='{middle + 4:.1f}' text-anchor='end'>{escape(group)}</text>")
        for index, name in enumerate(names):
            parts.append(_whisker(values.get(name), name, f"c{index % 6}", x_of, top + (index + 0.5) * _ROW))
        top += len(names) * _ROW + _GAP
    middle = (room + width - _RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{height - 2}' text-anchor='middle'>AUROC</text>")
    return Markup("".join(parts) + "</svg>")


def legend(names: Sequence[str], bold: str | None = None) -> Markup:
    """The colours of `names`, in the order of the charts."""
    entries = [f"<span class='key c{index % 6}'>{escape(name)}</span>" for index, name in enumerate(names)]
    if bold:
        entries.append(f"<span class='key bold'>{escape(bold)}</span>")
    return Markup(f"<p class='legend'>{''.join(entries)}</p>")


def _whisker(value: Interval | None, name: str, kind: str, x_of: Scale, y: float) -> str:
    if value is None:
        return f"<text class='none' x='{x_of(0.5):.1f}' y='{y + 4:.1f}'>too few patients</text>"
    low, high, middle = x_of(value["low"]), x_of(value["high"]), x_of(value["value"])
    told = f"{name} {interval_text(value)}"
    return (
        f"<g class='{kind}'><title>{escape(told)}</title><line x1='{low:.1f}' x2='{high:.1f}' y1='{y:.1f}' y2='{y:.1f}' />"
        f"<circle class='dot' cx='{middle:.1f}' cy='{y:.1f}' r='4' /></g>"
    )


def interval_text(value: Interval | None) -> str:
    """A value with its interval as text, such as 0.812 (0.74 to 0.87)."""
    return f"{value['value']:.3f} ({value['low']:.2f} to {value['high']:.2f})" if value else "too few patients"


def _svg_open(width: int, height: float, title: str) -> str:
    return f"<svg role='img' viewBox='0 0 {width} {height:.0f}'><title>{escape(title)}</title>"


class Scale:
    """Maps values linearly to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span, self._start, self._way = low, high - low, start, end - start

    def __call__(self, value: float) -> float:
        """The place of a value; the middle where all values are equal."""
        share = (value - self._low) / self._span if self._span else 0.5
        return self._start + share * self._way


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that span low to high, at most `most` steps apart."""
    if (high - low) / most == 0:
        room = 0.5 if low + 0.5 > low else abs(low)  # half of one is nothing to a number of 17 digits
        low, high = low - room, high + room
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _whole(low: float, high: float, most: int = 10) -> range:
    """Whole numbers from low to high, at most `most` of them."""
    first, last = math.ceil(low), math.floor(high)
    return range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))
