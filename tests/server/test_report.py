"""The report: what it computes from the records of rounds, and a page that shows it and runs nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrbase_model.plan import Plan
from cxrbase_model.protection import HospitalPrivacy
from cxrbase_model.settings import read
from cxrbase_model.transport import Transport
from server.charts import forest, line_chart
from server.examples import Examples, Look, overlay
from server.page import bytes_text, page
from server.promise import promise
from server.report import content, summary_text

PLAN = read(
    Plan,
    {
        "schema": 1,
        "name": "study <b>",
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 16},
        "model": {"encoder": "vit_micro", "patch_size": 8},
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 1},
            {"kind": "finetune", "name": "few", "rounds": 2, "init": "stage:mae", "label_fraction": 0.1},
            {"kind": "evaluate", "name": "test"},
        ],
    },
)
RUN = {
    "name": "study <b>",
    "plan_digest": "abc",
    "seed": 1,
    "versions": {"torch": "2"},
    "started": "2026-01-01T10:00:00",
    "sessions": [{"from_round": 0}, {"from_round": 2}],
}


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def evaluation(value: float) -> dict[str, Any]:
    cell = {"auroc": interval(value), "positives": 6, "negatives": 30}
    rare = {"auroc": None, "positives": "<5", "negatives": 34}
    return {"mean_auroc": interval(value), "findings": {"No Finding": cell, "Nodule": rare}}


def entry(site: str, **more: Any) -> dict[str, Any]:
    return {"site": site, "status": "admitted", "code": None, "loss": 0.5, "metrics": {}} | more


def record(number: int, stage: str, kind: str, hospitals: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    told = {"round": number, "stage": stage, "kind": kind, "stage_round": 1, "attempt": 1, "seconds": 2.0, "loss": 0.5}
    return (
        told | {"bytes_sent": 1000, "bytes_received": 500, "metrics": {}, "rejected": [], "hospitals": hospitals} | more
    )


def description() -> dict[str, Any]:
    counts = {"positive": 6, "negative": 20, "unknown": "<5"}
    return {
        "pictures": {"train": 20, "validation": "<5", "test": 9},
        "patients": 12,
        "findings": {"No Finding": counts},
        "exclusions": {"NOT_DICOM": "<5"},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    hospitals = [entry(site, description=description()) for site in ("north", "<i>south")]
    tests = [
        entry("north", evaluations={"few": evaluation(0.6)}),
        entry("<i>south", evaluations={"few": evaluation(0.8)}),
    ]
    return content(
        PLAN,
        RUN,
        [
            record(0, "describe", "describe", hospitals),
            record(1, "mae", "pretrain", [entry("north", loss=0.75)], rejected=[{"site": "<i>south", "code": "NORM"}]),
            record(2, "few", "finetune", [entry("north")], metrics={"validation_auroc": 0.5}),
            record(3, "few", "finetune", [entry("north")], stage_round=2),
            record(4, "test", "evaluate", tests, loss=None),
        ],
    )


def test_the_comparison_is_the_mean_over_hospitals(report: dict[str, Any]) -> None:
    assert report["comparison"]["few"] == {
        "init": "stage:mae",
        "label_fraction": 0.1,
        "mean_auroc": pytest.approx(0.7),
    }
    assert report["hospitals"].keys() == {"north", "<i>south"}
    assert report["total_rounds"] == 4


def test_what_was_promised_to_hospitals_is_on_the_page(report: dict[str, Any]) -> None:
    assert "promised" not in page(report)
    aggregation = replace(PLAN.aggregation, privacy=HospitalPrivacy(noise_multiplier=2.0))
    federation = replace(PLAN.federation, weighting="uniform")
    plan = replace(PLAN, aggregation=aggregation, federation=federation, transport=Transport())
    told = {
        "epsilon": 3.14159,
        "delta": 1e-5,
        "hospitals": {"<i>south": 3.14159, "north": None},
        "seeded": True,
        "sums": 1,
    }
    written = page(report | {"privacy": promise(plan, [record(1, "mae", "pretrain", [entry("north")], privacy=told)])})
    assert "Hospital-level epsilon = 3.14 at delta = 1e-05 after round 1." in written
    assert "nothing is promised against the server itself" in written
    assert "was seeded" in written
    assert "<i>south" not in written


def test_a_model_that_no_hospital_could_measure_has_no_mean() -> None:
    nothing: dict[str, Any] = {"mean_auroc": None, "findings": {}}
    told = record(0, "describe", "describe", [entry("north", description=description())])
    report = content(PLAN, RUN, [told, record(4, "test", "evaluate", [entry("north", evaluations={"few": nothing})])])
    assert report["comparison"]["few"]["mean_auroc"] is None
    assert "too few patients" in page(report)


def test_the_page_escapes_what_came_over_the_wire_and_runs_no_script(report: dict[str, Any]) -> None:
    written = page(report)
    assert "<i>south" not in written
    assert "study <b>" not in written
    assert "&lt;i&gt;south" in written
    assert "<script" not in written
    assert "src=" not in written  # no pictures given, and nothing is fetched


def test_the_page_shows_what_was_left_out_resumed_and_reached(report: dict[str, Any]) -> None:
    written = page(report)
    for expected in ("NORM", "not dicom", "&lt;5", "0.700", "Resumed before round 2.", "all 4 rounds done"):
        assert expected in written


def test_reconstructions_are_embedded_three_by_three(report: dict[str, Any]) -> None:
    picture = np.zeros((16, 16), np.uint8)
    assert page(report, [(picture, picture, picture)] * 2).count("data:image/png;base64,") == 6


def test_a_look_is_embedded_with_its_findings(report: dict[str, Any]) -> None:
    grey, colour = np.zeros((16, 16), np.uint8), np.zeros((16, 16, 3), np.uint8)
    written = page(
        report, looks=("few", [Look(grey, "Oedema <i>", [("Nodule <b>", 0.714, colour), ("No Finding", 0.2, colour)])])
    )
    assert written.count("data:image/png;base64,") == 3
    assert "Nodule &lt;b&gt; 71%" in written
    assert "Oedema &lt;i&gt;" in written
    assert "findings that few holds likeliest" in written


def test_examples_are_kept_for_later_reports(tmp_path: Path) -> None:
    examples = Examples(np.arange(32, dtype=np.uint8).reshape(2, 4, 4), ("Nodule", "No Finding"))
    assert Examples.kept(tmp_path / "examples.npz") is None
    examples.keep(tmp_path / "examples.npz")
    kept = Examples.kept(tmp_path / "examples.npz")
    assert kept is not None
    assert np.array_equal(kept.pictures, examples.pictures)
    assert kept.captions == examples.captions


def test_an_overlay_is_orange_where_the_map_is_largest() -> None:
    attention = np.zeros((4, 4), np.float32)
    attention[0, 3] = 0.5
    drawn = overlay(np.full((16, 16), 100, np.uint8), attention).astype(int)
    assert (drawn[0, 15] - 40 == [153, 84, 0]).all()
    assert (drawn[8:, :8] == 85).all()


def test_a_run_of_which_nothing_is_committed_has_a_page_too() -> None:
    report = content(PLAN, RUN, [])
    assert "0 of 4 rounds done" in page(report)
    assert summary_text(report) == "study <b>: 0 of 5 rounds committed"


def test_the_summary_names_each_hospital_and_model(report: dict[str, Any]) -> None:
    lines = summary_text(report).splitlines()
    assert lines[1].split() == ["AUROC,", "held-out", "patients", "north", "<i>south"]
    assert lines[2].split() == ["few", "0.600", "(0.50-0.70)", "0.800", "(0.70-0.90)"]


def test_a_forest_places_values_on_a_scale_from_zero_to_one() -> None:
    drawn = forest({"Nodule": {"a": {"value": 0.5, "low": 0.0, "high": 1.0}, "b": None}}, ["a", "b"], title="t")
    assert "x1='150.0' x2='410.0'" in drawn
    assert "cx='280.0'" in drawn
    assert "too few patients" in drawn


def test_charts_are_well_formed_and_a_seventh_line_looks_like_no_other() -> None:
    drawn = line_chart({str(number): [(1, number), (2, 3.0)] for number in range(8)}, title="a < b", across="round")
    kinds = [each.get("class") for each in ElementTree.fromstring(drawn).iter("g")]
    assert len(kinds) == len(set(kinds)) == 8
    ElementTree.fromstring(forest({"Nodule": {"a": {"value": 0.5, "low": 0.0, "high": 1.0}}}, ["a"], title="t"))


def test_a_chart_leaves_out_what_is_not_finite_and_survives_equal_values() -> None:
    drawn = line_chart({"a": [(1, 2.0), (2, float("nan")), (3, 2.0)]}, title="t", across="round")
    assert drawn.count("<circle") == 2
    assert "nan" not in drawn
    assert "Nothing to draw" in line_chart({"a": []}, title="t", across="round")
    for values in ([1e30, 1e30], [-1e16], [0.0, 5e-324]):  # a hospital may claim any finite loss
        assert "svg" in line_chart({"a": list(enumerate(values))}, title="t", across="round")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (14_413_704, "14.4 MB"), (3e9, "3 GB")])
def test_bytes_are_told_in_decimal_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_a_run_whose_privacy_noise_was_seeded_says_so_wherever_it_is_read(report: dict[str, Any]) -> None:
    assert "seeded" not in page(report)
    assert "seeded" not in summary_text(report)
    seeded = report | {"run": RUN | {"seeded_noise": True}}
    assert "privacy noise was seeded" in page(seeded)
    assert "privacy noise was seeded" in summary_text(seeded)
