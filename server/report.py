"""The report of a run: report.json with every number, report.html to read, and a summary for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cxrbase_model.plan import FinetuneStage, Plan, read_plan, timeline
from cxrbase_model.settings import to_mapping
from server.examples import Look, Triple
from server.page import SEEDED_TEXT, page
from server.promise import promise
from server.records import described
from server.store import RunStore, write_atomic

SCHEMA = 1
_SEEDED = "seeded-noise"  # a file that says so, whatever later sessions of the run do


def write_report(
    folder: Path, reconstructions: Sequence[Triple] = (), looks: tuple[str, Sequence[Look]] | None = None
) -> dict[str, Any]:
    """Write report.json and report.html of a run directory; returns the content of report.json.

    What models make of public pictures is in the page alone: `reconstructions`, and the `looks` of the model that is named with them.
    """
    plan = read_plan(folder / "plan.yaml")
    store = RunStore(folder, plan)
    run = store.run | ({"seeded_noise": True} if (folder / _SEEDED).exists() else {})
    report = content(plan, run, store.records())
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.html", page(report, reconstructions, looks).encode())
    return report


def tell_seeded(folder: Path) -> None:
    """Have the report of a run say that its privacy noise was seeded, wholly or in part; the folder may not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SEEDED).touch()


def content(plan: Plan, run: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of report.json.

    `hospitals` is what each told about itself, `evaluations` model to hospital to scores, `comparison` model to its
    start, its share of the labels, and `mean_auroc`: the mean over hospitals of the mean over findings, None if unknown. `privacy` is what
    was promised to hospitals (`promise.promise`), None where nothing was.
    """
    found = evaluations(records)
    return {
        "schema": SCHEMA,
        "run": run,
        "plan": to_mapping(plan),
        "total_rounds": len(timeline(plan)),
        "hospitals": hospitals(records),
        "evaluations": found,
        "privacy": promise(plan, records),
        "comparison": {
            stage.name: {
                "init": stage.init,
                "label_fraction": stage.label_fraction,
                "mean_auroc": _mean(found[stage.name].values()),
            }
            for stage in plan.stages
            if isinstance(stage, FinetuneStage) and stage.name in found
        },
        "rounds": records,
    }


def hospitals(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each hospital told about itself: name to pictures by split, patients, labels and exclusions by count; also those that joined
    while the run went on.
    """
    return {entry["site"]: entry["description"] for record in records for entry in described(record)}


def evaluations(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each evaluated model reached in each hospital: model to site to evaluation."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for entry in record["hospitals"]:
            for model, evaluation in entry.get("evaluations", {}).items():
                found.setdefault(model, {})[entry["site"]] = evaluation
    return found


def summary_text(report: dict[str, Any]) -> str:
    """The mean AUROC of each model in each hospital, as a table of text with intervals."""
    sites = list(report["hospitals"])
    lines = [f"{report['run']['name']}: {len(report['rounds'])} of {report['total_rounds'] + 1} rounds committed"]
    if report["run"].get("seeded_noise"):
        lines.append(f"  {SEEDED_TEXT}")
    if report["privacy"] is not None:
        lines.append("  " + report["privacy"]["text"])
    if not report["evaluations"]:
        return "\n".join(lines)
    width = max(22, *(len(site) for site in sites)) + 2
    heading = "AUROC, held-out patients"
    first = max(len(name) for name in (heading, *report["evaluations"])) + 2
    lines.append("  " + heading.ljust(first) + "".join(site.ljust(width) for site in sites))
    for model, by_site in report["evaluations"].items():
        cells = (_cell(by_site[site]["mean_auroc"]) if site in by_site else "-" for site in sites)
        lines.append("  " + model.ljust(first) + "".join(cell.ljust(width) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: dict[str, float] | None) -> str:
    return f"{value['value']:.3f} ({value['low']:.2f}-{value['high']:.2f})" if value else "too few patients"


def _mean(found: Iterable[dict[str, Any]]) -> float | None:
    known = [each["mean_auroc"]["value"] for each in found if each["mean_auroc"] is not None]
    return sum(known) / len(known) if known else None
