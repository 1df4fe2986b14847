"""The tables of a comparison say what its results say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from sim.compare import jobs
from sim.compare_findings import Findings, Value, cell
from sim.compare_table import judged, rounds_to, tables
from tests.sim.compared import bench_of, made_up


def test_the_tables_are_right_on_made_up_results(done: Path, tmp_path: Path) -> None:
    bench = dataclasses.replace(bench_of(done), out=tmp_path)
    rows = bench.tested(next(iter(jobs(bench.config))))
    perfect = bench.pool.labels[rows, 0]
    findings = made_up(bench, {"mean": perfect, "pooled": perfect}, [0.9, 0.97])
    text = tables(findings)
    assert "| `mean` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 0.0 (0.0 to 0.0) |" in text
    assert "| `median` | 0.500 (0.500 to 0.500) | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) |" in text
    assert "| `mean` | nan | 0.00 (0.00 to 0.00) | yes |" in text
    assert "| `median` | nan | 50.00 (50.00 to 50.00) | no |" in text
    assert "| `pooled` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 2 |  |" in text
    assert "| `mean` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 2 | 22 |" in text
    part = bench.config.parts[0]
    assert findings.seeds(cell(part, part.partitions[0], part.rules[0])) == [1]
    (tmp_path / "jobs" / "attacked" / "even-median-nan-by-1-1.npz").unlink()
    text = tables(Findings(bench))
    assert "| `median` | 0.500 (0.500 to 0.500) | not done | 50.0 (50.0 to 50.0) |" in text
    assert "| `median` | not done |  |  |" in text, "no verdict before all attacks were tried"


def test_rounds_are_counted_to_the_first_that_reaches_the_goal() -> None:
    assert rounds_to(np.array([0.5, 0.8, 0.7, 0.9]), 0.8) == 2
    assert rounds_to(np.array([0.5, 0.6]), 0.8) is None
    assert rounds_to(np.array([]), 0.8) is None


def test_a_loss_is_judged_by_its_whole_interval() -> None:
    assert judged(Value(0.1, -0.2, 0.4)) == "yes"
    assert judged(Value(0.3, 0.0, 0.6)) == "yes, but the interval reaches 0.60"
    assert judged(Value(0.7, 0.2, 1.0)) == "no, but the interval reaches down to 0.20"
    assert judged(Value(2.0, 1.0, 3.0)) == "no"
