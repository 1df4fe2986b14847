"""What leaves a hospital under aggregation.privacy, whatever the server asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from client.app import answer
from client.policy import Refused
from client.protect import protect, shortness
from client.site import Site
from cxrbase_model.codec import unpack
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import Plan
from cxrbase_model.protection import Adaptive, HospitalPrivacy, Secure
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.state import State, norm

NAMES = frozenset({"w"})
UPDATE = {"w": torch.full((100_000,), 0.5), "frozen": torch.zeros(3)}


def private(plan: Plan, **privacy: Any) -> Plan:
    aggregation = replace(plan.aggregation, privacy=HospitalPrivacy(**privacy))
    return replace(plan, aggregation=aggregation, federation=replace(plan.federation, weighting="uniform", quorum=3))


def task(clip: float | None) -> Task:
    return Task("pretrain", "run", 1, "mae", 1, "mae", "text", "digest", clip=clip)


def copied() -> State:
    return {name: tensor.clone() for name, tensor in UPDATE.items()}


def test_an_update_that_leaves_is_clipped_to_the_plans_norm(
    site: Site, plan: Plan, task_for: Callable[..., Task]
) -> None:
    the_plan = private(plan, clip=0.001)
    free = unpack(answer(task_for("mae"), site).update)
    found = unpack(answer(task_for("mae", plan=the_plan, clip=0.001), site).update)
    assert norm(free) > 0.002
    assert 0.00099 < norm(found) <= 0.001
    scale = norm(found) / norm(free)
    assert all(torch.allclose(found[name], free[name] * scale, rtol=1e-4, atol=1e-10) for name in free)


@pytest.mark.parametrize("clip", [None, 0.02, 0.0, -1.0, math.nan, math.inf])
def test_a_task_with_another_bound_than_the_plans_is_refused(
    site: Site, plan: Plan, task_for: Callable[..., Task], clip: float | None
) -> None:
    reply = answer(task_for("mae", plan=private(plan, clip=0.001), clip=clip), site)
    assert (reply.code, reply.update) == (Code.CLIP, b"")


def test_an_adaptive_bound_may_be_any_positive_number(plan: Plan) -> None:
    the_plan = private(plan, adaptive=Adaptive())
    assert norm(protect(copied(), the_plan, task(7.0), NAMES)) == pytest.approx(7.0, rel=1e-4)
    with pytest.raises(Refused, match="CLIP"):
        protect(copied(), the_plan, task(math.inf), NAMES)


def test_a_hospitals_share_of_the_noise_is_in_what_leaves(plan: Plan) -> None:
    the_plan = private(plan, clip=0.5, noise_multiplier=1.2, noise="hospitals")
    replies = [protect(copied(), the_plan, task(0.5), NAMES) for _ in range(2)]
    expected = 0.5 * 1.2 / math.sqrt(2)  # a quorum of three, less one that may take its own share off
    for found in replies:
        assert float(found["w"].std()) == pytest.approx(expected, rel=0.015)
        assert found["frozen"].tolist() == [0.0] * 3
    assert not torch.equal(replies[0]["w"], replies[1]["w"]), "nobody seeds it"


def test_an_update_that_is_not_finite_stays(plan: Plan) -> None:
    spoiled = {"w": torch.tensor([1.0, math.nan]), "frozen": torch.zeros(1)}
    with pytest.raises(Refused, match="NOT_FINITE"):
        protect(spoiled, private(plan), task(1.0), NAMES)


def test_without_privacy_the_update_leaves_as_it_is(plan: Plan) -> None:
    assert protect(UPDATE, plan, task(None), NAMES) is UPDATE
    assert shortness(UPDATE, plan, task(None), NAMES) == 0.0


def test_a_part_of_the_count_is_half_with_its_share_of_noise(plan: Plan) -> None:
    the_plan = private(plan, noise_multiplier=0.0, adaptive=Adaptive())
    assert shortness(UPDATE, the_plan, task(1.0), NAMES) == -0.5
    assert shortness(UPDATE, the_plan, task(1e4), NAMES) == 0.5
    shaken = secured(plan, noise="hospitals", noise_multiplier=1.0, adaptive=Adaptive())
    parts = torch.tensor([shortness(UPDATE, shaken, task(1.0), NAMES) for _ in range(400)])
    assert float(parts.mean()) == pytest.approx(-0.5, abs=6 * math.sqrt(0.5 / 400))
    assert float(parts.std()) == pytest.approx(math.sqrt(0.5), rel=0.25)


def secured(plan: Plan, **privacy: Any) -> Plan:
    aggregation = replace(plan.aggregation, privacy=HospitalPrivacy(**privacy), secure=Secure())
    return replace(plan, aggregation=aggregation, federation=replace(plan.federation, weighting="uniform", quorum=3))


def test_what_will_be_rounded_to_coarse_steps_is_clipped_shorter(plan: Plan) -> None:
    draw = torch.Generator().manual_seed(0)
    update = {"w": torch.randn(1_000_000, generator=draw), "frozen": torch.zeros(3)}
    found = protect(update, secured(plan, noise_multiplier=0.0), task(1.0), NAMES)["w"].double()
    step = 50 / (2**31 - 1)  # of a ring of 32 bits for 50 hospitals and numbers up to the clip
    rounded = found + step / 2 * found.sign()  # the worst that rounding can do
    assert 0.9999 < float(rounded.norm()) <= 1.0


def test_coarse_steps_and_privacy_do_not_go_together(plan: Plan) -> None:
    mapping = to_mapping(secured(plan))
    mapping["aggregation"]["secure"]["bits"] = 16
    with pytest.raises(SettingsError, match=r"aggregation.secure.bits: expected 32 .* found 16"):
        read(Plan, mapping)
