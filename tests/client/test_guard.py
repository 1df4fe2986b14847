"""A round of a plan with privacy in a hospital: booked first, noised, and nothing else leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.app import answer
from client.budget import reserve
from client.guard import secure
from client.site import Site
from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import unpack
from cxrbase_model.features import build_objective
from cxrbase_model.messages import Code, Reply, Task, reply_from_message, reply_to_message, task_to_message
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage
from cxrbase_model.privacy import Mechanism
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import State, is_finite, norm, state_of
from sim.runner import seeded_noise

MEASURED: dict[str, Any] = {"loss": None, "metrics": {}, "seconds": 0.0, "evaluation": None, "description": None}
TRAINED, WITH_LABELS = 18, 16  # patients of the fixture's training set; those that have a label


@pytest.fixture
def private(plan: Plan) -> Callable[..., Plan]:
    """The fixture's plan with `privacy:`, stages changed by name."""

    def make(privacy: dict[str, Any] | None = None, **stages: dict[str, Any]) -> Plan:
        mapping = to_mapping(plan)
        mapping["privacy"] = privacy or {}
        for stage in mapping["stages"]:
            if stage["kind"] == "finetune":
                stage |= {"label_fraction": 1.0, "positive_weight": 1.0}
            stage |= stages.get(stage["name"], {})
        return read(Plan, mapping)

    return make


@pytest.fixture
def booked(monkeypatch: pytest.MonkeyPatch) -> list[Mechanism]:
    """What was booked; the real ledger is written too."""
    found: list[Mechanism] = []

    def noted(site: Site, task: Task, mechanism: Mechanism) -> None:
        reserve(site, task, mechanism)
        found.append(mechanism)

    monkeypatch.setattr("client.guard.reserve", noted)
    return found


@pytest.mark.parametrize(
    ("stage", "unit", "expected", "examples"),
    [
        ("mae", "patient", Mechanism("patient", 1.0, 8 / TRAINED, 5), 40),
        ("mae", "picture", Mechanism("picture", 1.0, 8 / (2 * TRAINED), 9), 72),
        ("detect", "patient", Mechanism("patient", 1.0, 8 / WITH_LABELS, 2), 16),
    ],
)
def test_a_round_leaves_an_update_and_nothing_measured_and_its_cost_is_in_the_ledger(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], booked: list[Mechanism], stage: str,
    unit: str, expected: Mechanism, examples: int,
) -> None:  # fmt: skip
    task = task_for(stage, plan=private({"unit": unit}))
    reply = answer(task, site)
    assert reply.code is None
    assert {name: getattr(reply, name) for name in MEASURED} == MEASURED
    assert (reply.steps, reply.examples) == (expected.steps, examples), "a multiple of the plan's batch"
    assert norm(unpack(reply.update)) > 0
    assert booked == [expected]
    assert any((site.private / "ledger").iterdir())
    request = task_to_message(task, 2, ttl=60)
    assert reply_from_message(reply_to_message(reply, request)) == reply
    assert "NaN" not in json.dumps({name: value for name, value in vars(reply).items() if name != "update"})


def test_the_ledger_has_the_entry_of_the_round(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan]
) -> None:
    from client.ledger import Ledger

    assert answer(task_for("detect", plan=private()), site).code is None
    (entry,) = (each for each in Ledger(site.private).entries() if each.kind == "reserve")
    assert (entry.stage, entry.round, entry.noise, entry.rate, entry.steps) == ("detect", 1, 1.0, 8 / WITH_LABELS, 2)


def test_a_task_that_is_asked_for_again_is_neither_trained_nor_booked_again(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], booked: list[Mechanism]
) -> None:
    task = task_for("detect", plan=private())
    first, again = answer(task, site), answer(task, site)
    assert first == again
    assert len(booked) == 1


def test_what_is_refused_by_the_budget_is_not_trained(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from client import guard
    from client.policy import Refused

    def refuse(*_: object) -> None:
        raise Refused(Code.BUDGET)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(guard, "reserve", refuse)
    monkeypatch.setattr("client.local.pretrain", fail)
    assert answer(task_for("mae", plan=private()), site).code is Code.BUDGET


@pytest.mark.parametrize("name", ["compile", "recompute"])
def test_a_machine_set_to_what_cannot_be_private_spends_nothing(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], booked: list[Mechanism], name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    task = task_for("detect", plan=private())
    wrong: dict[str, Any] = {name: True}
    reply = answer(task, replace(site, compute=replace(site.compute, **wrong)))
    assert reply.code is Code.FAILED
    assert f"compute.{name}: expected false under a plan with privacy" in caplog.text
    assert not booked


def update_of(reply: Reply) -> bytes:
    assert reply.code is None
    return reply.update


def test_two_rounds_with_secure_noise_differ_and_seeded_ones_repeat(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan]
) -> None:
    from client.app import perform

    task = task_for("detect", plan=private())
    assert update_of(perform(task, site)) != update_of(perform(task, site))
    assert update_of(perform(task, site, seeded_noise)) == update_of(perform(task, site, seeded_noise))
    other = replace(task, round=2)
    assert update_of(perform(task, site, seeded_noise)) != update_of(perform(other, site, seeded_noise))
    assert seeded_noise(site, task).seeded
    assert not secure(site, task).seeded


def test_nothing_measured_on_held_out_pictures_is_computed(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> float:
        raise AssertionError("measured")

    for name in ("_validation_loss", "_validation_auroc", "positive_weights"):
        monkeypatch.setattr(f"client.work.{name}", fail)
    for stage in ("mae", "detect"):
        assert answer(task_for(stage, plan=private()), site).code is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mae", {"objective": "features", "masks": 2}),
        ("detect", {"trains": "lora"}),
        ("detect", {"trains": "last", "last_blocks": 1}),
        ("detect", {"trains": "head", "pooling": "attentive", "loss": {"kind": "asymmetric"}}),
    ],
    ids=["features", "lora", "last block", "attentive probe"],
)
def test_every_way_of_training_works_under_privacy(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], name: str, changes: dict[str, Any]
) -> None:
    plan = private(**{name: changes})
    found = plan.stage(name)
    assert not isinstance(found, EvaluateStage)
    model = build_classifier(plan, found) if isinstance(found, FinetuneStage) else build_objective(plan, found)
    reply = answer(task_for(name, plan=plan, state=state_of(model)), site)
    assert reply.code is None
    moved = {tensor for tensor, change in unpack(reply.update).items() if bool(change.any())}
    trained = {tensor for tensor, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= moved, "noise is on every weight"
    assert isinstance(found, PretrainStage) or moved == trained


def test_a_coarse_update_of_a_private_round_is_packed_as_the_plan_says(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan]
) -> None:
    whole = private()
    coarse = replace(whole, transport=replace(whole.transport, update="int8"))
    exact, packed = (update_of(answer(task_for("detect", plan=plan), site)) for plan in (whole, coarse))
    assert len(packed) < 0.5 * len(exact)


def test_a_noise_that_is_none_stops_the_training_before_it_is_booked(
    site: Site, task_for: Callable[..., Task], private: Callable[..., Plan], booked: list[Mechanism]
) -> None:
    nothing: Callable[[Site, Task], Any] = lambda site, task: None  # noqa: E731  # as short as it is wrong
    assert answer(task_for("detect", plan=private()), site, nothing).code is Code.FAILED
    assert not booked


def test_weights_whose_loss_is_not_a_number_give_the_same_kind_of_answer_under_a_guarantee_and_a_code_without(
    site: Site,
    plan: Plan,
    task_for: Callable[..., Task],
    private: Callable[..., Plan],
    state_for: Callable[[str], State],
) -> None:
    state = {name: tensor * 1e30 for name, tensor in state_for("mae").items()}
    assert is_finite(state)
    assert answer(task_for("mae", state=state, plan=plan), site).code is Code.DIVERGED
    usual, found = (answer(task_for("mae", plan=private(), **each), site) for each in ({}, {"state": state}))
    assert (found.code, found.steps, found.examples) == (None, usual.steps, usual.examples)
    assert norm(unpack(found.update)) > 0
