"""Each way in which a reply can be wrong is rejected with its own code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cxrbase_model.codec import pack
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.state import State
from server.admission import MOST_EXAMPLES, Rejected, admit_update, check_reply

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


def admitted(max_norm: float | None = None, **changes: Any) -> Code | None:
    try:
        admit_update(replace(REPLY, **changes), REFERENCE, max_norm)
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


def test_an_update_above_the_bound_is_rejected_and_without_a_bound_admitted() -> None:
    assert admitted(max_norm=1.8) == Code.NORM
    assert admitted(max_norm=None) is None
