"""The report of a run: report.json with every number, report.html to read, and a summary for the terminal."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxrbase_model.messages import MEANING, Code
from cxrbase_model.plan import read_plan
from cxrbase_model.settings import to_mapping
from server.store import RunStore, write_atomic

Triple = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]  # original, masked, reconstruction

_STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}
h1,h2{line-height:1.2}table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .8rem;text-align:left;border-bottom:1px solid #8884}th{font-weight:600}svg{width:100%;height:auto}
figure{display:inline-block;margin:.5rem}img{image-rendering:pixelated;width:9rem}code{word-break:break-all}
"""


def write_report(folder: Path, reconstructions: Sequence[Triple] = ()) -> dict[str, Any]:
    """Write report.json and report.html of a run directory; returns the content of report.json."""
    plan = read_plan(folder / "plan.yaml")
    store = RunStore(folder, plan)
    records = store.records()
    report = {
        "schema": 1,
        "run": store.run,
        "plan": to_mapping(plan),
        "rounds": records,
        "evaluations": evaluations(records),
    }
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.html", _page(report, reconstructions).encode())
    return report


def evaluations(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each evaluated model reached in each hospital: model to site to evaluation."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for entry in record["hospitals"]:
            for model, evaluation in entry.get("evaluations", {}).items():
                found.setdefault(model, {})[entry["site"]] = evaluation
    return found


def summary_text(report: dict[str, Any]) -> str:
    """The mean AUROC of each evaluated model in each hospital, as lines of text."""
    lines = [f"{report['run']['name']}: {len(report['rounds'])} rounds committed"]
    for model, sites in report["evaluations"].items():
        for site, evaluation in sites.items():
            lines.append(f"  {model:16s} {site:16s} AUROC {_interval(evaluation['mean_auroc'])}")
    return "\n".join(lines)


def _page(report: dict[str, Any], reconstructions: Sequence[Triple]) -> str:
    run, rounds = report["run"], report["rounds"]
    parts = [
        f"<h1>{html.escape(run['name'])}</h1>",
        f"<p>{len(rounds)} rounds. Plan <code>{run['plan_digest']}</code>, seed {run['seed']}.</p>",
        "<h2>Hospitals</h2>", _hospitals(rounds),
        "<h2>Loss</h2>", _curve(rounds, lambda record: record["loss"]),
        "<h2>Validation AUROC</h2>", _curve(rounds, lambda record: record["metrics"].get("validation_auroc")),
        "<h2>AUROC on held-out patients, 95 % intervals</h2>", _evaluations(report["evaluations"]),
        "<h2>Reconstructions: picture, what is seen, what is made of it</h2>", *map(_triple, reconstructions),
        "<h2>Rounds</h2>", _rounds(rounds),
        "<h2>Left out</h2>", _rejections(rounds),
        f"<details><summary>Plan</summary><pre>{html.escape(json.dumps(report['plan'], indent=1))}</pre></details>",
        f"<p>Versions: {html.escape(json.dumps(run['versions']))}</p>",
    ]  # fmt: skip
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(run['name'])}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style>{''.join(parts)}</html>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _hospitals(rounds: list[dict[str, Any]]) -> str:
    rows = []
    for entry in rounds[0]["hospitals"] if rounds else []:
        told = entry.get("description", {})
        left_out = ", ".join(f"{code} {count}" for code, count in told.get("exclusions", {}).items())
        rows.append([entry["site"], *told.get("pictures", {}).values(), told.get("patients", ""), left_out])
    return _table(["hospital", "train", "validation", "test", "patients", "excluded"], rows)


def _evaluations(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for model, sites in found.items():
        for site, evaluation in sites.items():
            rows.append([model, site, "mean", _interval(evaluation["mean_auroc"])])
            rows += [[model, site, name, _interval(cell["auroc"])] for name, cell in evaluation["findings"].items()]
    return _table(["model", "hospital", "finding", "AUROC"], rows)


def _rounds(rounds: list[dict[str, Any]]) -> str:
    names = ("round", "stage", "attempt", "seconds", "bytes_sent", "bytes_received", "loss")
    return _table(names, ([record[name] for name in names] for record in rounds))


def _rejections(rounds: list[dict[str, Any]]) -> str:
    rows = [
        [record["round"], e["site"], e["code"], MEANING[Code(e["code"])]]
        for record in rounds
        for e in record["rejected"]
    ]
    return _table(["round", "hospital", "code", "meaning"], rows) if rows else "<p>No reply was left out.</p>"


def _curve(rounds: list[dict[str, Any]], value: Any) -> str:
    points = [(record["round"], value(record)) for record in rounds if value(record) is not None]
    if len(points) < 2:
        return "<p>Nothing to draw.</p>"
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    place = [(20 + 760 * (x - first) / (last - first), 190 - 160 * (y - low) / (high - low or 1)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    labels = f"<text x=20 y=18 fill=currentColor font-size=13>{high:.3f} to {low:.3f}, rounds {first} to {last}</text>"
    return f"<svg viewBox='0 0 800 210'>{labels}<polyline points='{line}' fill=none stroke='#0072b2' stroke-width=2 /></svg>"


def _triple(triple: Triple) -> str:
    return "<figure>" + "".join(f"<img alt='' src='{_png(picture)}'>" for picture in triple) + "</figure>"


def _png(picture: NDArray[np.uint8]) -> str:
    data = BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _interval(cell: dict[str, float] | None) -> str:
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})" if cell else "too few pictures"
