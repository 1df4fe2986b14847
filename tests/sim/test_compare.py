"""The settings of a comparison: its jobs, the plan of each, and which results are its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxrbase_model.plan import FinetuneStage
from cxrbase_model.settings import SettingsError, read
from sim.compare import Attack, CompareConfig, Rule, jobs, mark, plan_of, read_compare
from tests.sim.compared import RULES, STUDY

ATTACK = {"rules": RULES, "plan": "plan.yaml", "attacks": []}


def test_a_comparison_that_judges_on_validation_patients_needs_some() -> None:
    parts = [{"name": "a", **ATTACK}]
    with pytest.raises(SettingsError, match="validation: expected a share above 0"):
        read(CompareConfig, {"parts": parts, "judged": "validation"})
    with pytest.raises(SettingsError, match=r"validation: expected at most 0.9 with held_out, found 1"):
        read(CompareConfig, {"parts": parts, "held_out": 0.6, "validation": 0.4})


def test_a_rule_changes_what_it_says_of_the_last_stage_and_leaves_the_rest(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    job = next(iter(jobs(config)))
    before = plan_of(plans["attacked"], job).stages[-1]
    changes = {"pooling": "grid", "grid": 2, "standardise": True, "optimizer": {"lr": 0.25}}
    changed = dataclasses.replace(job, rule=read(Rule, {"name": "grid", "stage": changes}))
    after = plan_of(plans["attacked"], changed).stages[-1]
    assert isinstance(before, FinetuneStage)
    optimizer = dataclasses.replace(before.optimizer, lr=0.25)
    assert after == dataclasses.replace(before, pooling="grid", grid=2, standardise=True, optimizer=optimizer)
    for wrong, told in (
        ({"poolin": "grid"}, r"stage\.poolin: unknown key"),
        ({"optimizer": 3}, r"stage\.optimizer: expected"),
    ):
        with pytest.raises(SettingsError, match=told):
            plan_of(plans["attacked"], dataclasses.replace(job, rule=read(Rule, {"name": "x", "stage": wrong})))


def test_scaffold_can_be_compared_with_weights_and_packing_of_its_own(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    job, plan = next(iter(jobs(config))), plans["attacked"]
    assert (plan.federation.weighting, plan.transport.update) == ("examples", "int8")
    scaffold: dict[str, Any] = {"name": "SCAFFOLD", "aggregation": {"scaffold": True}}
    with pytest.raises(SettingsError, match="weighting: expected uniform"):
        plan_of(plan, dataclasses.replace(job, rule=read(Rule, scaffold)))
    rule = read(Rule, scaffold | {"weighting": "uniform", "transport": {}})
    found = plan_of(plan, dataclasses.replace(job, rule=rule))
    assert (found.federation.weighting, found.transport.update) == ("uniform", "float32")
    assert plan_of(plan, job).transport == plan.transport


def test_results_of_other_settings_are_none_of_this_job(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    first, second, *_ = jobs(config)
    plan = plans["attacked"]
    marks = {
        mark(config, plan, first, Path("a")),
        mark(config, plan, first, Path("b")),
        mark(config, plan, second, Path("a")),
        mark(config, plan, dataclasses.replace(first, seed=2), Path("a")),
        mark(config, plan, dataclasses.replace(first, attack=Attack(kind="nan"), attackers=1), Path("a")),
        mark(dataclasses.replace(config, held_out=0.3), plan, first, Path("a")),
        mark(dataclasses.replace(config, validation=0.1, judged="validation"), plan, first, Path("a")),
    }
    assert len(marks) == 7
    more = dataclasses.replace(config, seeds=(1, 2), parts=config.parts[:1])
    assert mark(more, plan, first, Path("a")) == mark(config, plan, first, Path("a")), "a study may grow"


def test_seeds_are_outermost_and_honest_federations_come_first(study: Path) -> None:
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "seeds": [1, 2]}))
    found = list(jobs(read_compare(study / "study.yaml")[0]))
    assert [job.seed for job in found] == [1] * 10 + [2] * 10
    assert [job.attackers for job in found[:6]] == [0, 0, 1, 1, 1, 1]
    assert len({job.name for job in found}) == 20


def test_a_rule_that_the_quorum_is_too_small_for_is_named(study: Path) -> None:
    part = {**STUDY["parts"][0], "rules": [{"name": "krum", "aggregation": {"rule": {"kind": "krum"}}}]}
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "parts": [part]}))
    with pytest.raises(SettingsError, match=r"attacked/even-krum-0: federation.quorum: expected at least 5"):
        read_compare(study / "study.yaml")
