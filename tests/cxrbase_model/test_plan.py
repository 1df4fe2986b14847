"""The plan is checked as a whole before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.plan import (
    DataSpec,
    Federation,
    FinetuneStage,
    Plan,
    plan_from_text,
    plan_to_text,
    read_plan,
    timeline,
)
from cxrbase_model.privacy import Privacy
from cxrbase_model.protection import Secure
from cxrbase_model.settings import SettingsError, read
from cxrbase_model.transport import Transport

ROOT = Path(__file__).parents[2]


def plan_mapping() -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "test",
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 32},
        "model": {"encoder": "vit_micro", "patch_size": 8},
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 2},
            {"kind": "finetune", "name": "detect", "rounds": 3},
            {"kind": "finetune", "name": "scratch", "rounds": 1, "init": "random"},
            {"kind": "evaluate", "name": "test"},
        ],
    }


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    mapping = plan_mapping()
    change(mapping)
    return mapping


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.update(schema=2), "schema: expected one of 1; found 2 (int)"),
        (lambda m: m["data"].update(findings=[]), "data.findings: expected at least one finding, found none"),
        (
            lambda m: m["data"].update(findings=["a", "a"]),
            "data.findings: expected each finding once, found ['a', 'a']",
        ),
        (
            lambda m: m["model"].update(patch_size=5),
            "model.patch_size: expected a divisor of data.image_size 32, found 5",
        ),
        (
            lambda m: m["model"].update(patch_size=32),
            "model.patch_size: expected less than data.image_size, for one patch leaves none to hide; found 32",
        ),
        (
            lambda m: m["model"].update(decoder_width=66),
            "model.decoder_width: expected a multiple of 4, found 66",
        ),
        (
            lambda m: m["stages"][1].update(pooling="grid", grid=9),
            "stages[1].grid: expected at most 4, the patches a side, found 9",
        ),
        (
            lambda m: m["model"].update(decoder_heads=7),
            "model.decoder_heads: expected a divisor of decoder_width 512, found 7",
        ),
        (lambda m: m.update(stages=[]), "stages: expected at least one stage, found none"),
        (
            lambda m: m["stages"][0].update(init="previous"),
            "stages[0].init: expected random, timm:NAME or file:PATH in the first stage, found 'previous'",
        ),
        (
            lambda m: m["stages"][1].update(init="stage:none"),
            "stages[1].init: expected one of random, previous, timm:NAME, file:PATH, stage:mae; found 'stage:none'",
        ),
        (
            lambda m: m["stages"][1].update(init="mae"),
            "stages[1].init: expected one of random, previous, timm:NAME, file:PATH, stage:mae; found 'mae'",
        ),
        (
            lambda m: m["stages"][0].update(name="describe"),
            "stages[0].name: expected another name, since describe is that of the round in which hospitals tell what they have; found 'describe'",
        ),
        (
            lambda m: m["stages"][1].update(name="mae"),
            "stages[1].name: expected a new name of letters, digits, - and _; found 'mae'",
        ),
        (
            lambda m: m["stages"][3].update(of=["mae"]),
            "stages[3].of: expected earlier fine-tuning stages (detect, scratch); found 'mae'",
        ),
        (lambda m: m["stages"][0].update(mask_ratio=1.0), "stages[0].mask_ratio: expected 0.05 to 0.98, found 1.0"),
        (
            lambda m: m["stages"][0].update(optimizer={"learning": 1}),
            "stages[0].optimizer.learning: unknown key; known keys: lr, weight_decay, beta2, warmup, min_lr, clip_grad, state",
        ),
    ],
)
def test_a_wrong_plan_is_one_line(change: Callable[[dict[str, Any]], None], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(Plan, changed(change))
    assert str(caught.value) == line


def test_a_plan_travels_as_text_and_keeps_its_digest() -> None:
    plan = read(Plan, plan_mapping())
    again = plan_from_text(plan_to_text(plan))
    assert again == plan
    assert again.digest == plan.digest
    assert len(plan.digest) == 64
    assert read(Plan, changed(lambda m: m.update(seed=1))).digest != plan.digest


def test_text_that_is_no_plan_is_refused() -> None:
    with pytest.raises(SettingsError):
        plan_from_text("{")


def test_the_timeline_counts_rounds_over_the_whole_run_and_evaluates_one_model_a_round() -> None:
    rounds = timeline(read(Plan, plan_mapping()))
    assert [(r.number, r.stage.name, r.stage_round, r.stage_rounds, r.model_of) for r in rounds] == [
        (1, "mae", 1, 2, "mae"),
        (2, "mae", 2, 2, "mae"),
        (3, "detect", 1, 3, "detect"),
        (4, "detect", 2, 3, "detect"),
        (5, "detect", 3, 3, "detect"),
        (6, "scratch", 1, 1, "scratch"),
        (7, "test", 1, 2, "detect"),
        (8, "test", 2, 2, "scratch"),
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_plan_that_ships_is_valid(path: Path) -> None:
    assert read_plan(path).stages


def test_the_name_of_the_file_stands_before_the_key(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(changed(lambda m: m.update(seeed=1))))
    with pytest.raises(SettingsError, match=r"plan\.yaml: seeed: unknown key; did you mean seed\?"):
        read_plan(path)


def test_updates_are_int8_but_where_a_plan_wants_exact_ones() -> None:
    stages = (FinetuneStage(init="random", positive_weight=1.0),)
    data = DataSpec(findings=("Nodule",), image_size=32)
    usual = Plan(schema=1, name="usual", data=data, stages=stages)
    secure = replace(
        usual, aggregation=Aggregation(secure=Secure()), federation=Federation(quorum=3), transport=Transport()
    )
    assert usual.transport.update == "int8"
    assert secure.transport.update == "float32"
    assert plan_from_text(plan_to_text(secure)).digest == secure.digest


def test_scaffold_and_privacy_do_not_go_together() -> None:
    plan = Plan(
        schema=1, name="both", data=DataSpec(findings=("Nodule",), image_size=32), privacy=Privacy(),
        stages=(FinetuneStage(init="random", positive_weight=1.0),), federation=Federation(weighting="uniform"),
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"aggregation\.scaffold: expected false under privacy"):
        replace(plan, aggregation=Aggregation(scaffold=True))
