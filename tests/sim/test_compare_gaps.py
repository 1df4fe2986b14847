"""Gaps between groups are those of the pictures, have a level of chance, and small groups are left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.archive.identity import AGE_BANDS, SEXES
from cxrbase_model.metrics import auroc
from sim.compare import CompareConfig, Job, jobs, mark
from sim.compare_bench import Bench, Result
from sim.compare_findings import Findings
from sim.compare_gaps import LEAST, Groups, gap, gap_tables, groups_of
from tests.sim.compared import bench_of


def served(women: float, count: int = 400) -> tuple[Groups, np.ndarray]:
    """Scores that tell the sick of two groups, the first with so much noise."""
    rng = np.random.default_rng(0)
    index, targets = np.arange(count) % 2, rng.integers(0, 2, count).astype(float)
    scores = targets + rng.normal(0, np.where(index == 0, women, 1.0))
    return Groups(["female", "male"], index, targets, np.arange(count)), scores


def test_the_gap_is_that_between_the_best_and_the_worst_served() -> None:
    groups, scores = served(women=3.0)
    own = groups.index == 0
    found = groups.aurocs(scores)
    assert found[0] == auroc(scores[own], groups.targets[own])
    assert gap(found) == pytest.approx(100 * (found[1] - found[0]))
    low, high = np.quantile(gap(groups.resampled(scores)), [0.025, 0.975])
    assert groups.by_chance(scores) < low < gap(found) < high


def test_groups_that_are_served_alike_have_a_gap_as_by_chance() -> None:
    groups, scores = served(women=1.0)
    assert 0 < gap(groups.aurocs(scores)) < 3 * groups.by_chance(scores)
    assert groups.by_chance(np.full(400, 0.5)) == 0.0


def pool(**more: Any) -> Any:
    count = 4 * LEAST
    table = {
        "names": ["east", "west"], "hospitals": np.arange(count) % 2, "patients": np.arange(count),
        "labels": (np.arange(count)[:, None] // 2 % 2).astype(np.float32),
        "groups": {"sex": np.full(count, SEXES.index("female")), "age_band": np.full(count, AGE_BANDS.index("30-39"))},
    }  # fmt: skip
    return SimpleNamespace(**table | more)


def test_only_groups_with_enough_patients_of_both_classes_are_told_apart() -> None:
    rows = np.arange(4 * LEAST)
    assert groups_of(pool(), rows, "hospital").names == ["east", "west"]
    assert groups_of(pool(), rows[1:], "hospital").names == ["west"]
    assert groups_of(pool(), rows, "sex").names == ["female"]
    assert groups_of(pool(), rows, "age").names == ["under 40"]
    one = pool(patients=np.zeros(4 * LEAST, int))
    assert groups_of(one, rows, "hospital").names == [], "many pictures of one patient are not many patients"


def test_a_table_tells_each_group_and_what_a_rule_adds_to_the_gap(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.compare_gaps.LEAST", 3)
    bench = bench_of(done)
    part = dataclasses.replace(bench.config.parts[1], gaps=("hospital", "sex"))
    config: CompareConfig = dataclasses.replace(bench.config, parts=(part,))
    bench = dataclasses.replace(bench, config=config, out=tmp_path)
    for job in jobs(config):
        write(bench, job, fair=job.rule.name == "mean")
    lines = list(gap_tables(Findings(bench), part))
    perfect, turned = "1.000 (1.000 to 1.000)", "0.000 (0.000 to 0.000)"
    assert any(f"| `mean` | {perfect} | {perfect} | 0.0 (0.0 to 0.0) | 0.0 |  |" in line for line in lines)
    row = next(line for line in lines if line.startswith("| `median`"))
    assert f"| {perfect} | {turned} | 100.0 (100.0 to 100.0) |" in row
    assert row.endswith("| 100.0 (100.0 to 100.0) |")
    assert any("By sex: fewer than two groups" in line for line in lines), "these folders do not tell it"


def write(bench: Bench, job: Job, fair: bool) -> None:
    """A result that serves both hospitals perfectly, or the second one wrongly."""
    rows = bench.tested(job)
    scores = bench.pool.labels[rows, 0].copy()
    if not fair:
        scores[bench.pool.hospitals[rows] == 1] = 1 - scores[bench.pool.hospitals[rows] == 1]
    result = Result(scores, np.array([1.0]), np.array([1]), np.array([1]), "", {})
    file = bench.out / "jobs" / f"{job.name}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = {**vars(result), "rejected": "{}"}
    np.savez(file, mark=mark(bench.config, bench.plans[job.part.name], job, bench.data), **fields)
