"""Each way in which a reply can be wrong is rejected with its own code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cxrbase_model.codec import encode, pack
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import PretrainStage
from cxrbase_model.state import State
from cxrbase_model.transport import EXACT, Packing
from server.admission import (
    MOST_EXAMPLES,
    Rejected,
    admit_description,
    admit_evaluation,
    admit_update,
    check_reply,
    claimable,
    reached_by_most,
    unlike,
)

TASK = Task("pretrain", "run", 3, "mae", 3, "mae", "{}", "d" * 64, "e" * 64)
REFERENCE: State = {"encoder.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
UPDATE: State = {"encoder.weight": torch.full((2, 3), 0.5), "head.bias": torch.tensor([1.0, -1.0])}
REPLY = Reply("north", "pretrain", 3, "mae", "d" * 64, examples=10, update=pack(UPDATE))


def checked(**changes: Any) -> Code | None:
    try:
        check_reply(replace(REPLY, **changes), TASK, {"south"})
    except Rejected as rejected:
        return rejected.code
    return None


def admitted(max_norm: float | None = None, limits: dict[str, Any] | None = None, **changes: Any) -> Code | None:
    try:
        admit_update(replace(REPLY, **changes), REFERENCE, max_norm, **(limits or {}))
    except Rejected as rejected:
        return rejected.code
    return None


def test_a_reply_to_this_task_passes() -> None:
    assert checked() is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 2}, Code.ROUND),
        ({"stage": "detect"}, Code.ROUND),
        ({"kind": "finetune"}, Code.ROUND),
        ({"plan_digest": "f" * 64}, Code.PLAN_DIGEST),
        ({"site": "south"}, Code.DUPLICATE),
        ({"code": Code.NO_LABELS}, Code.NO_LABELS),
    ],
)
def test_a_reply_to_something_else_is_rejected(changes: dict[str, Any], code: Code) -> None:
    assert checked(**changes) == code


def test_a_sound_update_is_admitted_with_its_norm() -> None:
    result = admit_update(REPLY, REFERENCE, max_norm=2.0)
    assert result.examples == 10
    assert result.norm == pytest.approx((6 * 0.25 + 2) ** 0.5)
    assert torch.equal(result.update["head.bias"], UPDATE["head.bias"])


def test_variates_that_travel_beside_an_update_have_no_part_in_its_norm() -> None:
    variates = {f"control/{name}": tensor + 1e6 for name, tensor in UPDATE.items()}
    reference = REFERENCE | {f"control/{name}": tensor for name, tensor in REFERENCE.items()}
    result = admit_update(replace(REPLY, update=pack(UPDATE | variates)), reference, max_norm=2.0)
    assert result.norm == pytest.approx((6 * 0.25 + 2) ** 0.5)
    variates["control/head.bias"][0] = torch.nan
    with pytest.raises(Rejected, match=Code.NOT_FINITE.value):
        admit_update(replace(REPLY, update=pack(UPDATE | variates)), reference, max_norm=2.0)


def broken(**tensors: torch.Tensor) -> bytes:
    return pack({**UPDATE, **{name.replace("_", "."): tensor for name, tensor in tensors.items()}})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"examples": 0}, Code.EXAMPLES),
        ({"examples": -5}, Code.EXAMPLES),
        ({"examples": MOST_EXAMPLES + 1}, Code.EXAMPLES),
        ({"update": b""}, Code.MALFORMED),
        ({"update": b"not tensors"}, Code.MALFORMED),
        ({"update": pack({"head.bias": torch.zeros(2)})}, Code.NAMES),
        ({"update": broken(head_extra=torch.zeros(1))}, Code.NAMES),
        ({"update": broken(head_bias=torch.zeros(3))}, Code.SHAPES),
        ({"update": broken(encoder_weight=torch.zeros(3, 2))}, Code.SHAPES),
        ({"update": broken(head_bias=torch.zeros(2, dtype=torch.float64))}, Code.SHAPES),
        ({"update": broken(head_bias=torch.tensor([0.0, float("nan")]))}, Code.NOT_FINITE),
        ({"update": broken(encoder_weight=torch.full((2, 3), float("-inf")))}, Code.NOT_FINITE),
    ],
)
def test_an_update_that_does_not_fit_is_rejected(changes: dict[str, Any], code: Code) -> None:
    assert admitted(**changes) == code


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"outlying": 1.8}, Code.OUTLIER),
        ({"outlying": 1.9}, None),
        ({"most_examples": 9}, Code.CLAIM),
        ({"most_examples": 10}, None),
        ({"is_local": lambda name: name == "head.bias"}, Code.LOCAL),
        ({"is_local": lambda name: name.startswith("decoder")}, None),
    ],
)
def test_an_update_is_held_against_earlier_ones_and_against_what_its_hospital_described(
    limits: dict[str, Any], code: Code | None
) -> None:
    assert admitted(limits=limits) == code


@pytest.mark.parametrize(
    ("norms", "longest", "shortest", "left_out"),
    [
        ([1.0, 1.2, 0.9, 3.2], 3.0, None, {}),  # the median is 1.1
        ([1.0, 1.2, 0.9, 3.4], 3.0, None, {"d": Code.OUTLIER}),
        ([1.0, 1.2, 900.0, 800.0, 1.1], 3.0, None, {"c": Code.OUTLIER, "d": Code.OUTLIER}),
        ([1.0, 1.2, 0.9, 0.001], 3.0, 0.05, {"d": Code.SHORT}),
        ([1.0, 1.2, 0.9, 0.001], 3.0, None, {}),
        ([1.0, 1.2, 100.0, 0.04], None, 0.05, {"d": Code.SHORT}),
        ([0.0, 0.0, 0.0], 3.0, 0.05, {}),
        ([], 3.0, 0.05, {}),
    ],
)
def test_updates_are_held_against_the_median_norm_of_their_round(
    norms: list[float], longest: float | None, shortest: float | None, left_out: dict[str, Code]
) -> None:
    assert unlike(dict(zip("abcde", norms, strict=False)), longest, shortest) == left_out


@pytest.mark.parametrize(
    ("norms", "hospitals", "reached"),
    [
        ([1.0, 30.0, 20.0], 3, 20.0),
        ([1.0, 1.0, 30.0, 1e30], 4, 1.0),  # half of them move nothing
        ([1.0, 20.0, 30.0, 1e30, 1e30], 5, 30.0),
        ([20.0, 1e30, 1e30], 5, 20.0),  # two have not answered: one of three may be all that is honest
        ([1e30, 1e30], 5, 0.0),
        ([], 0, 0.0),
    ],
)
def test_the_norm_that_most_hospitals_reach_is_beyond_the_choice_of_a_minority(
    norms: list[float], hospitals: int, reached: float
) -> None:
    assert reached_by_most(norms, hospitals) == reached


@pytest.mark.parametrize("packing", [EXACT, Packing("int8", "zstd"), Packing("topk", "zstd", 0.5)], ids=str)
def test_zeros_for_what_stays_in_the_hospital_are_admitted_whatever_the_packing(packing: Packing) -> None:
    still = {**UPDATE, "head.bias": torch.zeros(2)}
    reply = replace(REPLY, update=encode(still, packing))
    assert admit_update(reply, REFERENCE, None, packing, is_local=lambda name: name == "head.bias").norm > 0


def test_an_update_of_another_packing_than_the_plans_is_malformed() -> None:
    with pytest.raises(Rejected, match="MALFORMED"):
        admit_update(REPLY, REFERENCE, None, Packing("int8"))
    packed = replace(REPLY, update=encode(UPDATE, Packing("int8", "zstd")))
    update = admit_update(packed, REFERENCE, None, Packing("int8", "zstd")).update
    torch.testing.assert_close(update["encoder.weight"], UPDATE["encoder.weight"])


@pytest.mark.parametrize(
    ("described", "most"),
    [
        ({"pictures": {"train": 100}}, 2 * 3 * 100 + 8),
        ({"pictures": {"train": "<5"}}, 2 * 3 * 4 + 8),
        ({"pictures": {"train": ">=5"}}, MOST_EXAMPLES),
        ({"pictures": {"train": 0}}, 0),
        ({"pictures": {"train": -7}}, 0),
        ({"pictures": {"train": "<0"}}, 0),
        ({"pictures": {"train": "many"}}, 0),
        ({"pictures": {"train": 1.5}}, 0),
        ({"pictures": 3}, 0),
        ({}, 0),
    ],
)
def test_a_claim_is_bounded_by_the_described_pictures_at_their_most(described: dict[str, Any], most: int) -> None:
    stage = PretrainStage(local_epochs=3.0, batch_size=8)
    assert claimable(described, stage, slack=2.0) == most
    assert claimable(described, stage, slack=None) == MOST_EXAMPLES


def test_an_update_above_the_bound_is_rejected_and_without_a_bound_admitted() -> None:
    assert admitted(max_norm=1.8) == Code.NORM
    assert admitted(max_norm=None) is None


CELL = {"auroc": {"value": 0.7, "low": 0.6, "high": 0.8}, "positives": 40, "negatives": ">=5"}
CELL |= dict.fromkeys(("average_precision", "brier", "calibration_error", "prevalence"), 0.25)
EVALUATION = {"examples": 90, "patients": 80, "mean_auroc": CELL["auroc"], "findings": {"Nodule": CELL}}


@pytest.mark.parametrize(
    "changes",
    [
        {"findings": {}},
        {"findings": {"Nodule": 3}},
        {"findings": {"Nodule": CELL, "<script>": CELL}},
        {"findings": {"Nodule": CELL | {"auroc": {"value": 1.7, "low": 0.6, "high": 0.8}}}},
        {"findings": {"Nodule": CELL | {"brier": "0.1"}}},
        {"findings": {"Nodule": CELL | {"positives": -1}}},
        {"mean_auroc": {"value": 0.7}},
        {"mean_auroc": [0.7]},
        {"patients": None},
        {"more": 1},
    ],
)
def test_an_evaluation_of_anything_but_the_plans_findings_is_malformed(changes: dict[str, Any]) -> None:
    reply = replace(REPLY, kind="evaluate", evaluation=EVALUATION)
    assert admit_evaluation(reply, ["Nodule"]) == EVALUATION
    with pytest.raises(Rejected, match="MALFORMED"):
        admit_evaluation(replace(reply, evaluation=EVALUATION | changes), ["Nodule"])
    without: list[dict[str, Any] | None] = [None, {}]
    for nothing in without:
        with pytest.raises(Rejected, match="MALFORMED"):
            admit_evaluation(replace(reply, evaluation=nothing), ["Nodule"])
    with pytest.raises(Rejected, match="EXAMPLES"):
        admit_evaluation(replace(reply, examples=-3), ["Nodule"])


@pytest.mark.parametrize(
    "told",
    [
        {"kinds": 5},
        {"kinds": "pretrain"},
        {"kinds": [["pretrain"]]},
        {"kinds": ["pretrain", "rm"]},
        {"pictures": [1]},
        {"pictures": {"train": -7}},
        {"pictures": {"train": "<99999"}},
        {"pictures": {"elsewhere": 7}},
        {"patients": 1.5},
        {"findings": {"Fracture": {"positive": 1, "negative": 1, "unknown": 1}}},
        {"findings": {"Nodule": {"positive": 1}}},
        {"exclusions": {"a/path": 1}},
        {"exclusions": {"D" * 33: 1}},
        {"more": 1},
    ],
)  # fmt: skip
def test_a_description_that_is_none_keeps_its_hospital_out(told: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="MALFORMED"):
        admit_description(replace(REPLY, kind="describe", description=told), ["Nodule"])


def test_what_a_description_does_not_tell_counts_as_nothing() -> None:
    told = admit_description(replace(REPLY, description={"kinds": ["pretrain"], "pictures": {"train": "<5"}}), [])
    assert told == {
        "kinds": ["pretrain"], "pictures": {"train": "<5"}, "patients": 0, "findings": {}, "exclusions": {}, "image_size": 0,
    }  # fmt: skip
