"""The comparison of packings: it runs the plan under each, goes on where it was, and says what differs; and the default keeps its promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cxrbase_model.settings import SettingsError
from cxrbase_model.transport import Transport
from sim.packing import Outcome, read_packing, run_one, table
from sim.tiny import write_tiny_hospital
from tests.sim.test_differences import plan


def test_the_default_sends_at_most_three_eighths_of_float32_both_ways(tmp_path: Path) -> None:
    the_plan = replace(plan(difference=True), transport=Transport())
    sites = [write_tiny_hospital(tmp_path / name, name, the_plan.data) for name in ("a", "b")]
    outcome = run_one(tmp_path / "default", the_plan, "default", sites)
    assert outcome.down <= 0.375
    assert outcome.up <= 0.375
    assert outcome.evaluation < 0.7
    assert run_one(tmp_path / "default", the_plan, "default", []) == outcome, "what was found is read and not run again"


def test_the_table_sets_each_packing_against_the_first_of_the_same_seed() -> None:
    outcomes = [
        Outcome("exact", 0, {"detect": 0.7}, 1.0, 1.0, 1.0), Outcome("coarse", 0, {"detect": 0.69}, 0.2, 0.25, 0.5),
        Outcome("exact", 1, {"detect": 0.6}, 1.0, 1.0, 1.0), Outcome("coarse", 1, {"detect": 0.63}, 0.3, 0.25, 0.5),
    ]  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(outcomes).splitlines()[2:]]
    assert rows[1] == [
        "coarse",
        "0.250",
        "0.250",
        "0.500",
        "detect",
        "0.6900 0.6300",
        "0.6600",
        "-0.0100 +0.0300",
        "+0.0100 (-0.2441 to +0.2641)",  # 12.706 times 0.02
    ]
    assert rows[0][-1] == "+0.0000"


@pytest.mark.parametrize(
    ("name", "trained"),
    [("packing", "packing"), ("packing-phantoms", "packing-phantoms"), ("packing-demo", "demo")],
)
def test_the_configurations_that_come_with_it_are_read(name: str, trained: str) -> None:
    config, the_plan = read_packing(Path(__file__).parents[2] / "configs" / "sim" / f"{name}.yaml")
    assert config.packings["default"] == Transport()
    assert not config.packings["exact"].differs
    assert the_plan.name == trained


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "packing.yaml"
    file.write_text(
        yaml.safe_dump({"plan": "plan.yaml", "packings": {"one": {"broadcasts": "bf16"}}}), encoding="utf-8"
    )
    with pytest.raises(SettingsError, match=r"packings.*broadcasts: unknown key"):
        read_packing(file)
