"""report.html: one self-contained page made of the content of report.json and a few pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from cxrbase_model.messages import MEANING, Code
from server.charts import forest, interval_text, legend, line_chart
from server.examples import Look, Triple

Report = dict[str, Any]

SEEDED_TEXT = "privacy noise was seeded, so it can be taken off again: nobody's data is protected by this run"

_EVERYONE = "all hospitals"
_CURVES = {  # what is drawn of each kind of stage: key of an entry or of its metrics, and the name of the chart
    "pretrain": (("loss", "loss of the reconstruction"), ("validation_loss", "held-out loss")),
    "finetune": (("loss", "training loss"), ("validation_auroc", "validation AUROC")),
}


def environment(*packages: str) -> Environment:
    """Where templates are, those of the packages named first; the page's style and its tables are the server's. Everything is escaped."""
    loader = ChoiceLoader([PackageLoader(package) for package in (*packages, "server")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(
    report: Report, reconstructions: Sequence[Triple] = (), looks: tuple[str, Sequence[Look]] | None = None
) -> str:
    """The whole page; everything that came over the wire is escaped. looks: the model's name, and where it looks in each picture."""
    sites = list(report["hospitals"])
    found = report["evaluations"]
    rounds = [record for record in report["rounds"] if record["kind"] != "describe"]
    return (
        environment()
        .get_template("report.html")
        .render(
            run=report["run"],
            warning=SEEDED_TEXT if report["run"].get("seeded_noise") else "",
            sites=sites,
            progress=_progress(report),
            headlines=list(_headlines(report, rounds)),
            legend=legend(sites),
            training_legend=legend(sites, _EVERYONE),
            models=list(found),
            forests=list(_forests(found, sites)) if found else [],
            figures=list(_figures(found, sites)),
            curves=list(_curves(rounds, sites)),
            triples=[[_png(picture) for picture in triple] for triple in reconstructions],
            looking=looks[0] if looks else "",
            looks=[list(_look(each)) for each in looks[1]] if looks else [],
            pictures=list(_pictures(report["hospitals"])),
            labels=list(_labels(report, sites)),
            stages=list(_stages(report, rounds)),
            exclusions=list(_exclusions(report["hospitals"])),
            rejections=list(_rejections(report["rounds"])),
            rounds=[_round(record) for record in report["rounds"]],
            privacy=report["privacy"],
            protected=list(_protected(report["privacy"])),
            plan_text=yaml.safe_dump(report["plan"], sort_keys=False),
        )
    )


def bytes_text(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"


def _progress(report: Report) -> str:
    done, total = len(report["rounds"]) - 1, report["total_rounds"]
    return f"all {total} rounds done" if done == total else f"{max(done, 0)} of {total} rounds done"


def _headlines(report: Report, rounds: list[Report]) -> Iterable[dict[str, str]]:
    for model, row in report["comparison"].items():
        if row["mean_auroc"] is not None:
            yield {
                "number": f"{row['mean_auroc']:.3f}",
                "text": f"mean AUROC of {model}: {_origin(row)}, {row['label_fraction']:.0%} of the labels",
            }
    counts = [count for site in report["hospitals"].values() for count in site["pictures"].values()]
    pictures = sum(count for count in counts if isinstance(count, int))  # a small count is told as text, such as <5
    yield {"number": f"{pictures:,}", "text": f"radiographs in {len(report['hospitals'])} hospitals, none of them sent"}
    sent = sum(record["bytes_sent"] + record["bytes_received"] for record in rounds)
    yield {"number": bytes_text(sent), "text": "of weights sent and received"}
    seconds = sum(record["seconds"] for record in rounds)
    yield {"number": f"{seconds / 60:.1f} min", "text": "in rounds"}


def _origin(row: Report) -> str:
    init = str(row["init"])
    if init.startswith("stage:"):
        return f"starts from {init.removeprefix('stage:')}"
    return "from scratch" if init == "random" else f"starts from {init}"


def _forests(found: Report, sites: list[str]) -> Iterable[dict[str, Any]]:
    means = {model: {site: each["mean_auroc"] for site, each in by_site.items()} for model, by_site in found.items()}
    yield {
        "title": "Mean over the findings",
        "chart": forest(means, sites, title="mean AUROC of each model in each hospital"),
    }
    for model, by_site in found.items():
        findings = list(dict.fromkeys(name for each in by_site.values() for name in each["findings"]))
        groups = {
            name: {site: each["findings"][name]["auroc"] for site, each in by_site.items() if name in each["findings"]}
            for name in findings
        }
        yield {"title": f"{model}, by finding", "chart": forest(groups, sites, title=f"AUROC of {model} by finding")}


def _figures(found: Report, sites: list[str]) -> Iterable[list[str]]:
    for model, by_site in found.items():
        findings = list(dict.fromkeys(name for each in by_site.values() for name in each["findings"]))
        yield [
            model,
            "mean",
            *(interval_text(by_site[site]["mean_auroc"]) if site in by_site else "" for site in sites),
        ]
        for name in findings:
            cells = (by_site.get(site, {}).get("findings", {}).get(name) for site in sites)
            yield [model, name, *(_figure(cell) for cell in cells)]


def _figure(cell: Report | None) -> str:
    return f"{interval_text(cell['auroc'])}, {cell['positives']} / {cell['negatives']}" if cell else ""


def _curves(rounds: list[Report], sites: list[str]) -> Iterable[dict[str, Any]]:
    for stage, kind in dict.fromkeys((record["stage"], record["kind"]) for record in rounds):
        own = [record for record in rounds if record["stage"] == stage]
        for key, what in _CURVES.get(kind, ()):
            lines = {site: _points(own, site, key) for site in sites}
            whole = record_points(own, key)
            if not whole:
                continue
            title = f"{stage}: {what}"
            chart = line_chart({**lines, _EVERYONE: whole}, title=title, across="round of the stage", bold=_EVERYONE)
            yield {"title": title, "chart": chart}


def record_points(records: list[Report], key: str) -> list[tuple[float, float]]:
    """(round of the stage, value) of a key of the records or of their metrics, where known."""
    found = ((record["stage_round"], record.get(key, record["metrics"].get(key))) for record in records)
    return [(number, value) for number, value in found if value is not None]


def _points(records: list[Report], site: str, key: str) -> list[tuple[float, float]]:
    found = [
        (record["stage_round"], entry.get(key, entry["metrics"].get(key)))
        for record in records
        for entry in record["hospitals"]
        if entry["site"] == site and entry["status"] == "admitted"
    ]
    return [(number, value) for number, value in found if value is not None]


def _pictures(hospitals: Report) -> Iterable[list[Any]]:
    for site, told in hospitals.items():
        counts = told["pictures"]
        yield [site, told["patients"], *(counts.get(split, 0) for split in ("train", "validation", "test"))]


def _labels(report: Report, sites: list[str]) -> Iterable[list[str]]:
    for finding in report["plan"]["data"]["findings"]:
        cells = (report["hospitals"][site]["findings"].get(finding) for site in sites)
        yield [finding, *(f"{c['positive']} / {c['negative']} / {c['unknown']}" if c else "-" for c in cells)]


def _stages(report: Report, rounds: list[Report]) -> Iterable[list[Any]]:
    for stage in report["plan"]["stages"]:
        own = [record for record in rounds if record["stage"] == stage["name"]]
        labels = f"{stage.get('label_fraction', 1.0):.0%}" if stage["kind"] == "finetune" else "none"
        yield [
            stage["name"],
            stage["kind"],
            _origin(stage) if "init" in stage else "",
            labels if stage["kind"] != "evaluate" else stage["split"],
            len(own),
            stage.get("local_epochs", ""),
            f"{sum(record['seconds'] for record in own):.1f}",
            bytes_text(sum(record["bytes_sent"] for record in own)),
            bytes_text(sum(record["bytes_received"] for record in own)),
        ]


def _exclusions(hospitals: Report) -> Iterable[list[Any]]:
    for code in sorted({code for told in hospitals.values() for code in told["exclusions"]}):
        yield [code.lower().replace("_", " "), *(told["exclusions"].get(code, 0) for told in hospitals.values())]


def _rejections(records: list[Report]) -> Iterable[list[Any]]:
    for record in records:
        for entry in record["rejected"]:
            code = Code(entry["code"])
            yield [record["round"], record["stage"], entry["site"], code.value, MEANING[code]]


def _protected(privacy: Report | None) -> Iterable[list[str]]:
    for site, value in (privacy or {"hospitals": {}})["hospitals"].items():
        yield [site, f"{value:.3g}" if value is not None else "none"]


def _round(record: Report) -> list[Any]:
    loss = f"{record['loss']:.4f}" if record["loss"] is not None else ""
    sent, received = bytes_text(record["bytes_sent"]), bytes_text(record["bytes_received"])
    return [record["round"], record["stage"], record["attempt"], f"{record['seconds']:.2f}", sent, received, loss]


def _look(look: Look) -> Iterable[tuple[str, str]]:
    """The pictures of one look, each with its caption."""
    yield look.caption, _png(look.picture)
    for name, chance, seen in look.findings:
        yield f"{name} {chance:.0%}", _png(seen)


def _png(picture: NDArray[np.uint8]) -> str:
    data = BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
