"""The pictures of a comparison of rules, each an SVG file of its own: points lost under attack, and AUROC against rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import escape

from server.charts import colour_class, line_chart
from sim.compare import Part
from sim.compare_findings import Findings, Value, cell
from sim.compare_table import Losses

_STYLE = """
svg { font: 11.5px system-ui, sans-serif; } rect.page { fill: #fff; } text { fill: #1c2329; } text.title { font-weight: 600; }
text.light { fill: #fff; } .grid { stroke: #d6dce0; } polyline { fill: none; stroke: currentColor; stroke-width: 1.7; }
.dot { fill: currentColor; } .bold { color: #1c2329; } .bold polyline { stroke-width: 2.6; } .again polyline, line.again {
stroke-dasharray: 5 3; } line.key { stroke: currentColor; stroke-width: 2.2; } .c0 { color: #0072b2; } .c1 { color: #d55e00; }
.c2 { color: #009e73; } .c3 { color: #b0629a; } .c4 { color: #b98200; } .c5 { color: #3f9bd1; }
"""
_PANEL, _TALL, _GAP, _ROW = (420, 230), 22, 14, 18  # a panel's size, its title, what lies between, a line of the legend
_CELL, _NAMES, _HEAD = (74, 26), 130, 58  # of the table of losses
_FADED = 30.0  # points lost that are drawn darkest


def write_plots(findings: Findings, folder: Path) -> list[Path]:
    """Write what can be drawn of the results so far; the files."""
    written = []
    for part in findings.config.parts:
        drawn = ""
        if part.attacks:
            drawn = attack_plot(findings, part)
        elif part.curve:  # else AUROC is known at the end alone
            drawn = convergence_plot(findings, part)
        if drawn:
            file = folder / f"{part.name}.svg"
            file.write_text(drawn, encoding="utf-8")
            written.append(file)
    return written


def attack_plot(findings: Findings, part: Part) -> str:
    """Points lost by each rule under each attack, a table of colours for each number of attackers, of the rules that have any; empty without results."""
    sites, parts, top = part.partitions[0].sites, [], 0.0
    width = _NAMES + len(part.attacks) * _CELL[0] + _GAP
    for attackers in part.attackers:
        losses = Losses(findings, part, attackers)
        found = {(rule.name, attack.name): losses.of(rule, attack) for rule in part.rules for attack in part.attacks}
        if any(found.values()):
            title = f"AUROC points lost, {attackers} of {sites} hospitals attack"
            attacks = [attack.name for attack in part.attacks]
            rules = [rule.name for rule in part.rules if any(found[rule.name, attack] for attack in attacks)]
            parts.append(f"<g transform='translate(0 {top:.0f})'>{loss_table(found, rules, attacks, title)}</g>")
            top += _HEAD + len(rules) * _CELL[1] + _GAP
    return _page(width, top, parts) if parts else ""


def loss_table(
    found: Mapping[tuple[str, str], Value | None], rules: Sequence[str], attacks: Sequence[str], title: str
) -> str:
    """One table of colours: light where nothing is lost, dark where much is, empty where nothing is known; `title` stands over it."""
    wide, tall = _CELL
    parts = [f"<text class='title' x='{_NAMES}' y='16'>{escape(title)}</text>"]
    for column, attack in enumerate(attacks):
        x, words = _NAMES + (column + 0.5) * wide, attack.replace("-x", " ×").split("-", 1)
        for line, word in enumerate(words):
            y = _HEAD - 8 - 13 * (len(words) - 1 - line)
            parts.append(f"<text x='{x:.1f}' y='{y}' text-anchor='middle'>{escape(word)}</text>")
    for row, rule in enumerate(rules):
        y = _HEAD + row * tall
        parts.append(f"<text x='{_NAMES - 8}' y='{y + 17}' text-anchor='end'>{escape(rule)}</text>")
        for column, attack in enumerate(attacks):
            value, x = found[rule, attack], _NAMES + column * wide
            if value is None:
                continue
            share = min(math.sqrt(max(value.value, 0.0) / _FADED), 1.0)
            told = f"{rule}, {attack}: {value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
            kind = " class='light'" if share > 0.6 else ""
            parts.append(
                f"<g><title>{escape(told)}</title><rect x='{x + 1}' y='{y + 1}' width='{wide - 2}' height='{tall - 2}' rx='3' "
                f"fill='{_shade(share)}' /><text{kind} x='{x + wide / 2}' y='{y + 17}' text-anchor='middle'>"
                f"{round(value.value, 1) + 0.0:.1f}</text></g>"
            )
    return "".join(parts)


def _shade(share: float) -> str:
    """From a pale to a dark colour."""
    ends = np.array([(240, 243, 245), (160, 40, 20)])
    red, green, blue = (ends[0] + share * (ends[1] - ends[0])).round().astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def convergence_plot(findings: Findings, part: Part, columns: int = 2) -> str:
    """AUROC against rounds, mean over seeds, a panel for each cut, the pooled training in black; empty without results."""
    names, pooled = [rule.name for rule in part.rules], next((rule.name for rule in part.rules if rule.pooled), None)
    panels = []
    for cut in part.partitions:
        series = {}
        for rule in part.rules:
            job = cell(part, cut, rule)
            curves = [each.curve for each in findings.results(job, findings.seeds(job)) if len(each.curve)]
            if curves:
                mean = np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)
                series[rule.name] = [(float(number), float(value)) for number, value in enumerate(mean, start=1)]
        if series:
            ordered = {name: series.get(name, []) for name in names}
            panels.append((cut.title, line_chart(ordered, title=cut.title, across="round", bold=pooled)))
    if not panels:
        return ""
    wide, tall = _PANEL[0] + _GAP, _PANEL[1] + _TALL + _GAP
    parts = []
    for number, (name, chart) in enumerate(panels):
        x, y = number % columns * wide, number // columns * tall
        parts.append(f"<text class='title' x='{x + 46}' y='{y + 15}'>{escape(name)}: AUROC on held-out patients</text>")
        place = f"x='{x}' y='{y + _TALL}' width='{_PANEL[0]}' height='{_PANEL[1]}' "
        parts.append(str(chart).replace("<svg ", f"<svg {place}", 1))
    top = tall * math.ceil(len(panels) / columns) + 4
    width = wide * min(columns, len(panels))
    rows = _legend(names, pooled, width, top)
    return _page(width, top + rows[1] * _ROW + 8, [*parts, *rows[0]])


def _legend(names: Sequence[str], bold: str | None, width: float, top: float) -> tuple[list[str], int]:
    """The keys of the lines, in as many rows as the width asks for; the number of rows."""
    parts, colour, x, row = [], 0, 46.0, 0
    for name in names:
        kind = "bold" if name == bold else colour_class(colour)
        colour += name != bold
        if x + 40 + 6.6 * len(name) > width:
            x, row = 46.0, row + 1
        y = top + row * _ROW
        parts.append(f"<line class='key {kind}' x1='{x:.0f}' x2='{x + 22:.0f}' y1='{y + 8:.0f}' y2='{y + 8:.0f}' />")
        parts.append(f"<text x='{x + 27:.0f}' y='{y + 12:.0f}'>{escape(name)}</text>")
        x += 44 + 6.6 * len(name)
    return parts, row + 1


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' height='{height:.0f}'>"
        f"<style>{_STYLE}</style><rect class='page' width='100%' height='100%' />{''.join(parts)}</svg>\n"
    )
