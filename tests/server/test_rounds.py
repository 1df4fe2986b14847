"""The round loop over an in-process Grid: quorum, rejections, repeats, resume, and the same bits after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from cxrbase_model.codec import pack, unpack
from cxrbase_model.messages import Code, Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from server.exchange import Exchange, Stopped
from server.live import Live
from server.report import hospitals
from server.rounds import RoundLoop, RunFailed
from server.store import RunStore
from sim.grid import LocalGrid, Node
from tests.server.hospitals import Change, hospital, in_training, plan, start_of


def run(folder: Path, nodes: list[Node], the_plan: Plan | None = None, *, resume: bool = False) -> RunStore:
    the_plan = the_plan or plan()
    store = RunStore.resume(folder, the_plan) if resume else RunStore.create(folder, the_plan)
    RoundLoop(Exchange(LocalGrid(dict(enumerate(nodes, start=1)))), store, Live(folder)).run()
    return store


def shift_of(store: RunStore, name: str = "mae") -> float:
    """How far training moved the weights of a stage, which is the same for each weight."""
    before = start_of(store, name)
    moved = torch.cat([(store.stage_state(name)[key] - before[key]).flatten() for key in before])
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=0, atol=1e-5)
    return float(moved.mean())


def test_each_round_moves_the_weights_by_the_mean_weighted_by_examples(tmp_path: Path) -> None:
    store = run(tmp_path, [hospital("a", 1.0, 30), hospital("b", 0.0, 10)])
    assert shift_of(store) == pytest.approx(2 * 0.75, abs=1e-5)
    records = store.records()
    assert [record["kind"] for record in records] == [
        "describe",
        "pretrain",
        "pretrain",
        "finetune",
        "finetune",
        "evaluate",
    ]
    assert records[1]["loss"] == pytest.approx(0.75)
    assert records[1]["bytes_sent"] > 0
    assert records[5]["hospitals"][0]["evaluations"].keys() == {"detect"}


def test_uniform_weighting_counts_hospitals_alike(tmp_path: Path) -> None:
    store = run(tmp_path, [hospital("a", 1.0, 30), hospital("b", 0.0, 10)], plan(weighting="uniform"))
    assert shift_of(store) == pytest.approx(2 * 0.5, abs=1e-5)


def spoiled(**tensors: torch.Tensor) -> Change:
    return in_training(lambda task, reply: replace(reply, update=pack({**unpack(reply.update), **tensors})))


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (in_training(lambda t, r: replace(r, round=t.round - 1)), "rejected", Code.ROUND),
        (in_training(lambda t, r: replace(r, plan_digest="0" * 64)), "rejected", Code.PLAN_DIGEST),
        (in_training(lambda t, r: replace(r, site="a")), "rejected", Code.IDENTITY),
        (in_training(lambda t, r: replace(r, examples=0)), "rejected", Code.EXAMPLES),
        (in_training(lambda t, r: replace(r, code=Code.POLICY, update=b"")), "refused", Code.POLICY),
        (in_training(lambda t, r: None), "silent", Code.NO_REPLY),
        (spoiled(extra=torch.zeros(1)), "rejected", Code.NAMES),
        (in_training(lambda t, r: replace(r, update=_with_nan(r.update))), "rejected", Code.NOT_FINITE),
        (in_training(lambda t, r: replace(r, update=_reshaped(r.update))), "rejected", Code.SHAPES),
        (in_training(lambda t, r: replace(r, update=_scaled(r.update, 1e30))), "rejected", Code.NORM),
    ],
)
def test_a_bad_reply_is_left_out_with_its_reason_and_the_round_goes_on(
    tmp_path: Path, change: Change, status: str, code: Code
) -> None:
    nodes = [hospital("a", 1.0, 10), hospital("b", 0.5, 10), hospital("bad", 100.0, 10, change)]
    store = run(tmp_path, nodes)
    record = store.records()[1]
    assert {entry["site"]: (entry["status"], entry["code"]) for entry in record["hospitals"]} == {
        "a": ("admitted", None),
        "b": ("admitted", None),
        "bad": (status, code),
    }
    assert record["rejected"] == [{"site": "bad", "code": code}]
    assert shift_of(store) == pytest.approx(2 * 0.75, abs=1e-5)


def _with_nan(update: bytes) -> bytes:
    state = unpack(update)
    next(iter(state.values())).flatten()[0] = float("nan")
    return pack(state)


def _reshaped(update: bytes) -> bytes:
    state = unpack(update)
    name = next(iter(state))
    return pack({**state, name: state[name].flatten()[:-1]})


def _scaled(update: bytes, factor: float) -> bytes:
    return pack({name: tensor * factor for name, tensor in unpack(update).items()})


def test_a_norm_above_the_plans_bound_is_left_out(tmp_path: Path) -> None:
    nodes = [hospital("a", 1e-4, 10), hospital("b", 1e-4, 10), hospital("loud", 1.0, 10)]
    store = run(tmp_path, nodes, plan(max_update_norm=1.0))
    assert store.records()[1]["rejected"] == [{"site": "loud", "code": "NORM"}]
    assert shift_of(store) == pytest.approx(2e-4, rel=1e-2)


def test_a_round_without_quorum_is_repeated_and_counted(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails_once(task: Task, reply: Reply) -> Reply:
        calls.append(task.round)
        return replace(reply, code=Code.FAILED, update=b"") if len(calls) == 1 else reply

    store = run(tmp_path, [hospital("a", 1.0, 10), hospital("b", 1.0, 10, fails_once)])
    assert [record["attempt"] for record in store.records()[1:3]] == [2, 1]


def test_a_run_that_finds_no_quorum_stops_says_who_answered_what_and_goes_on_later(tmp_path: Path) -> None:
    broken = hospital("b", 1.0, 10, lambda t, r: replace(r, code=Code.OUT_OF_MEMORY, update=b"") if t.round == 2 else r)
    with pytest.raises(RunFailed, match=r"round 2 \(mae\) had no quorum of 2 in 2 attempts \(b: OUT_OF_MEMORY"):
        run(tmp_path, [hospital("a", 1.0, 10), broken])
    store = run(tmp_path, [hospital("a", 1.0, 10), hospital("b", 1.0, 10)], resume=True)
    assert [record["round"] for record in store.records()] == [0, 1, 2, 3, 4, 5]


def test_too_few_hospitals_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="1 hospitals joined within 1 s, the quorum is 2"):
        run(tmp_path, [hospital("a", 1.0, 10)])


def test_where_all_that_are_expected_have_refused_nobody_waits(tmp_path: Path) -> None:
    def without_cache(message: Message) -> Message:
        task = task_from_message(message)
        reply = Reply("a", task.kind, task.round, task.stage, task.plan_digest, code=Code.CACHE_MISSING)
        return reply_to_message(reply, message)

    grid = LocalGrid({1: without_cache, 2: without_cache})
    store = RunStore.create(tmp_path, plan(join_deadline=600))
    loop = RoundLoop(Exchange(grid), store, Live(tmp_path), expected=2)
    with pytest.raises(RunFailed, match=r"0 hospitals joined within \d s.*a: CACHE_MISSING"):
        loop.run()


def test_a_hospital_that_joins_later_takes_part_from_the_next_round(tmp_path: Path) -> None:
    grid = LocalGrid({1: hospital("a", 1.0, 10), 2: hospital("b", 1.0, 10)})
    store = RunStore.create(tmp_path, plan())

    def join(record: dict[str, Any]) -> None:
        if record["round"] == 1:
            grid.nodes[3] = hospital("late", 1.0, 10)
            del grid.nodes[1]

    RoundLoop(Exchange(grid), store, Live(tmp_path), observers=[join]).run()
    asked = [[entry["site"] for entry in record["hospitals"]] for record in store.records()]
    assert asked[1] == ["a", "b"]
    assert asked[2] == ["b", "late"]
    assert list(hospitals(store.records())) == ["a", "b", "late"], "its description is on record, for the report"
    assert [len(record.get("joined", [])) for record in store.records()][:4] == [0, 0, 1, 0]


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(tmp_path: Path, killed_after: int) -> None:
    nodes = [hospital("a", 0.3, 7), hospital("b", -0.1, 11), hospital("c", 0.01, 5)]
    whole = run(tmp_path / "whole", nodes)

    class Killed(BaseException):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["round"] == killed_after:
            raise Killed

    store = RunStore.create(tmp_path / "cut", plan())
    with pytest.raises(Killed):
        RoundLoop(Exchange(LocalGrid(dict(enumerate(nodes)))), store, Live(tmp_path), observers=[kill]).run()
    resumed = run(tmp_path / "cut", list(reversed(nodes)), resume=True)
    digests = [[record.get("state_digest") for record in store.records()] for store in (whole, resumed)]
    assert digests[0] == digests[1]


def test_a_run_that_is_asked_to_stop_stops_while_it_waits(tmp_path: Path) -> None:
    grid = LocalGrid({1: hospital("a", 1.0, 10), 2: lambda message: None})
    with pytest.raises(Stopped):
        RoundLoop(Exchange(grid, should_stop=lambda: True), RunStore.create(tmp_path, plan()), Live(tmp_path)).run()
