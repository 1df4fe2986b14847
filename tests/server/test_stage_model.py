"""What the server knows of a stage's network."""

from __future__ import annotations

from dataclasses import replace

from server.stage_model import unmatched
from tests.server.hospitals import plan as tiny_plan


def test_a_pattern_of_own_tensors_that_names_none_is_told() -> None:
    plan = tiny_plan()
    right = replace(plan, aggregation=replace(plan.aggregation, keep_local=("decoder_*", "*norm*")))
    wrong = replace(plan, aggregation=replace(plan.aggregation, keep_local=("decoder.*",)))
    assert unmatched(plan) == unmatched(right) == ""
    assert "decoder_embed" in unmatched(wrong)
    assert "'decoder.*', which matches none" in unmatched(wrong)


def test_patterns_that_leave_nothing_to_share_are_told() -> None:
    plan = tiny_plan()
    nothing = replace(plan, aggregation=replace(plan.aggregation, keep_local=("*norm*", "*")))
    assert unmatched(nothing).endswith("found ['*norm*', '*'], which match all")
