"""Tensors that a hospital keeps for itself: they are trained, stay, and go into the models of later rounds, stages and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from client.dataset import Cache
from client.own import FOLDER, Own, forget_own
from client.site import Site
from client.work import evaluate, train
from cxrbase_model.codec import unpack
from cxrbase_model.engine import Runtime
from cxrbase_model.messages import Task
from cxrbase_model.plan import Plan
from cxrbase_model.state import State, add, load_state, state_of

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def cache(site: Site) -> Cache:
    return Cache.open(site.cache_folder)


@pytest.fixture
def local_plan(plan: Plan) -> Plan:
    """The norms and the decoder stay in the hospital."""
    return replace(plan, aggregation=replace(plan.aggregation, keep_local=("*norm*", "decoder_*")))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The weights of each model that was loaded."""
    seen: list[State] = []

    def look(model: Any, state: State) -> None:
        load_state(model, state)
        seen.append(state_of(model))

    monkeypatch.setattr("client.work.load_state", look)
    return seen


def own(site: Site, task: Task) -> State:
    """What a task has kept."""
    return Own(site.private, replace(task, stage_round=task.stage_round + 1)).before() or {}


def test_what_is_local_is_zero_in_the_update_and_all_else_is_not(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task]
) -> None:
    update = unpack(train(task_for("mae", plan=local_plan), site, cache, CPU).update)
    moved = {name for name, tensor in update.items() if tensor.any()}
    assert any("norm" in name for name in update)
    assert moved
    assert not any("norm" in name or name.startswith("decoder.") for name in moved)


def test_the_next_round_goes_on_with_the_hospitals_own_and_the_others_shared_tensors(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State],
    loaded: list[State],
) -> None:  # fmt: skip
    first = task_for("mae", 1, plan=local_plan)
    update = unpack(train(first, site, cache, CPU).update)
    shared = add(state_for("mae"), {name: tensor + 0.01 for name, tensor in update.items()})
    train(task_for("mae", 2, plan=local_plan, state=shared), site, cache, CPU)
    kept = own(site, first)
    assert kept
    for name, tensor in loaded[1].items():
        assert torch.equal(tensor, kept[name] if name in kept else shared[name]), name


def test_a_later_stage_begins_with_the_own_tensors_of_the_one_it_starts_from(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task], loaded: list[State]
) -> None:
    pretrained = task_for("mae", 3, plan=local_plan)
    train(pretrained, site, cache, CPU)
    train(task_for("detect", 1, plan=local_plan), site, cache, CPU)
    norms = {name: tensor for name, tensor in own(site, pretrained).items() if name in loaded[1]}
    assert norms
    assert all(torch.equal(loaded[1][name], tensor) for name, tensor in norms.items())
    assert any(tensor.ne(1).any() and tensor.any() for tensor in norms.values()), "they were trained"


def test_an_evaluation_is_of_the_model_with_the_hospitals_own_tensors(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task], loaded: list[State]
) -> None:
    tuned = task_for("detect", 3, plan=local_plan)
    train(tuned, site, cache, CPU)
    evaluate(task_for("test", plan=local_plan), site, cache, CPU)
    kept = own(site, tuned)
    assert kept
    assert all(torch.equal(loaded[-1][name], tensor) for name, tensor in kept.items())


def test_whoever_missed_a_whole_stage_is_evaluated_with_the_own_tensors_of_the_one_before(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task], loaded: list[State]
) -> None:
    pretrained = task_for("mae", 3, plan=local_plan)
    train(pretrained, site, cache, CPU)
    evaluate(task_for("test", plan=local_plan), site, cache, CPU)
    norms = {name: tensor for name, tensor in own(site, pretrained).items() if name in loaded[-1]}
    assert norms
    assert all(torch.equal(loaded[-1][name], tensor) for name, tensor in norms.items())


def test_a_repeated_round_starts_from_the_same_own_tensors(
    site: Site, cache: Cache, local_plan: Plan, task_for: Callable[..., Task]
) -> None:
    train(task_for("mae", 1, plan=local_plan), site, cache, CPU)
    second = task_for("mae", 2, plan=local_plan)
    replies = [train(second, site, cache, CPU) for _ in range(2)]
    assert replies[0].update == replies[1].update


def test_without_patterns_nothing_is_kept_and_what_is_kept_can_be_forgotten(
    site: Site, cache: Cache, plan: Plan, local_plan: Plan, task_for: Callable[..., Task]
) -> None:
    train(task_for("mae", plan=plan), site, cache, CPU)
    assert not (site.private / FOLDER).exists()
    train(task_for("mae", plan=local_plan), site, cache, CPU)
    assert list((site.private / FOLDER).rglob("*.safetensors"))
    forget_own(site.private)
    assert not (site.private / FOLDER).exists()
