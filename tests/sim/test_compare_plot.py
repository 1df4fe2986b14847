"""The pictures of a comparison."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from sim.compare_findings import Findings, Value
from sim.compare_plot import attack_plot, loss_table, write_plots
from tests.sim.compared import bench_of, made_up


def test_no_curve_is_drawn_where_the_end_alone_was_tested(done: Path, tmp_path: Path) -> None:
    bench = dataclasses.replace(bench_of(done), out=tmp_path)
    cuts = next(part for part in bench.config.parts if not part.attacks)
    for curve in (True, False):
        config = dataclasses.replace(bench.config, parts=(dataclasses.replace(cuts, curve=curve),))
        findings = made_up(dataclasses.replace(bench, config=config), {}, [0.9, 0.97] if curve else [0.97])
        assert [file.name for file in write_plots(findings, tmp_path)] == ([f"{cuts.name}.svg"] if curve else [])


def test_a_rule_that_was_not_attacked_has_no_row(done: Path, tmp_path: Path) -> None:
    findings = made_up(dataclasses.replace(bench_of(done), out=tmp_path), {}, [0.9])
    for file in (tmp_path / "jobs" / "attacked").glob("*-median-*-by-*"):
        file.unlink()
    drawn = attack_plot(Findings(findings.bench), findings.config.parts[0])
    words = [each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "mean" in words
    assert "median" not in words


def test_the_picture_of_losses_says_each_of_them() -> None:
    found = {("mean", "nan"): Value(0.04, 0.0, 0.1), ("mean", "scaled-x100"): Value(41.26, 38.0, 44.0)}
    drawn = ElementTree.fromstring(f"<svg>{loss_table(found, ['mean'], ['nan', 'scaled-x100'], 'lost')}</svg>")
    words = [each.text for each in drawn.iter("text")]
    assert words == ["lost", "nan", "scaled ×100", "mean", "0.0", "41.3"]
    assert "mean, scaled-x100: 41.26 (38.00 to 44.00)" in [each.text for each in drawn.iter("title")]
