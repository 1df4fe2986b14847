"""The plan's rules, steps, limits and packings over whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.codec import decode, pack, unpack
from cxrbase_model.messages import Reply, Task
from cxrbase_model.plan import Plan, PretrainStage, plan_from_text, plan_to_text
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.state import State, digest
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop, RunFailed
from server.store import RunStore, StoreError
from sim.grid import LocalGrid, Node
from tests.server.hospitals import hospital, plan, short_plan, start_of

ADAM = {"step": {"kind": "fedadam", "lr": 0.01}}
MEDIAN = {"rule": {"kind": "median"}}


def planned(whole: Plan, **sections: Any) -> Plan:
    return read(Plan, to_mapping(whole) | sections)


def run(folder: Path, nodes: list[Node], the_plan: Plan, *, resume: bool = False, kill_after: int = -1) -> RunStore:
    def kill(record: dict[str, Any]) -> None:
        if record["round"] == kill_after:
            raise KeyboardInterrupt

    store = RunStore.resume(folder, the_plan) if resume else RunStore.create(folder, the_plan)
    grid = LocalGrid(dict(enumerate(nodes, start=1)))
    RoundLoop(Exchange(grid), store, Live(folder), observers=[kill]).run()
    return store


def three(**shifts: float) -> list[Node]:
    return [hospital(name, shift, 10) for name, shift in ({"a": 0.3, "b": -0.1, "c": 0.01} | shifts).items()]


def moved(store: RunStore, stage: str = "mae") -> float:
    before = start_of(store, stage)
    return float(torch.cat([(store.stage_state(stage)[key] - before[key]).flatten() for key in before]).double().mean())


@pytest.mark.parametrize("killed_after", [1, 2, 3])
@pytest.mark.parametrize("aggregation", [ADAM, {"step": {"kind": "fedavgm"}} | MEDIAN], ids=["fedadam", "fedavgm"])
def test_a_step_that_remembers_ends_in_the_same_bits_after_a_kill(
    tmp_path: Path, aggregation: dict[str, Any], killed_after: int
) -> None:
    the_plan = planned(plan(quorum=3), aggregation=aggregation)
    whole = run(tmp_path / "whole", three(), the_plan)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", three(), the_plan, kill_after=killed_after)
    resumed = run(tmp_path / "cut", three()[::-1], the_plan, resume=True)
    digests = [[record.get("state_digest") for record in store.records()] for store in (whole, resumed)]
    assert digests[0] == digests[1]


def test_a_memory_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    the_plan = planned(plan(), aggregation=ADAM)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, three(), the_plan, kill_after=1)
    (tmp_path / "checkpoints" / "round-00001" / "step.safetensors").unlink()
    with pytest.raises(StoreError, match=r"step\.safetensors"):
        run(tmp_path, three(), the_plan, resume=True)


def test_one_loud_hospital_moves_the_mean_and_not_the_median(tmp_path: Path) -> None:
    nodes = three(c=100.0)
    assert moved(run(tmp_path / "mean", nodes, short_plan(quorum=3))) == pytest.approx(3 * (100.2 / 3), rel=1e-3)
    store = run(tmp_path / "median", nodes, planned(short_plan(quorum=3), aggregation=MEDIAN))
    assert moved(store) == pytest.approx(3 * 0.3, rel=1e-3)
    assert not (tmp_path / "median" / "spool").exists()


def test_an_update_far_above_those_of_earlier_rounds_is_left_out(tmp_path: Path) -> None:
    def loud_later(task: Task, reply: Reply) -> Reply:
        if task.round != 2:
            return reply
        return replace(reply, update=pack({name: 1000 * each for name, each in unpack(reply.update).items()}))

    nodes = [*three()[:2], hospital("c", 0.1, 10, loud_later)]
    records = run(tmp_path, nodes, short_plan(outlier=10.0)).records()
    assert [record["rejected"] for record in records] == [[], [], [{"site": "c", "code": "OUTLIER"}], []]


@pytest.mark.parametrize(
    "aggregation", [{}, MEDIAN, {"rule": {"kind": "bounded-mean"}}], ids=["mean", "median", "bounded"]
)
@pytest.mark.parametrize(("shift", "code"), [(-50.0, "OUTLIER"), (1e-4, "SHORT"), (-0.2, "OPPOSED")])
def test_a_hospital_unlike_the_others_is_left_out_from_the_first_round_on(
    tmp_path: Path, aggregation: dict[str, Any], shift: float, code: str
) -> None:
    honest = [hospital(name, shift, 10) for name, shift in {"a": 0.3, "b": 0.1, "c": 0.2}.items()]
    checked = planned(short_plan(longest=5.0, shortest=0.01, cosine=0.0, quorum=3), aggregation=aggregation)
    store = run(tmp_path / "attacked", [*honest, hospital("d", shift, 10)], checked)
    assert [record["rejected"] for record in store.records()] == [[], *[[{"site": "d", "code": code}]] * 3]
    without = run(tmp_path / "without", honest[::-1], planned(short_plan(quorum=3), aggregation=aggregation))
    digests = [[record.get("state_digest") for record in each.records()] for each in (store, without)]
    assert digests[0] == digests[1]
    assert not (tmp_path / "attacked" / "spool").exists()


def test_a_round_that_is_too_small_once_it_was_compared_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no quorum of 3 in 2 attempts \(c: OUTLIER .*same round"):
        run(tmp_path, three(c=100.0), short_plan(quorum=3, longest=3.0))


def test_two_updates_have_no_usual_norm() -> None:
    with pytest.raises(
        SettingsError,
        match=r"federation.quorum: expected at least 3 where longest, shortest or cosine is set, .* found 2",
    ):
        short_plan(longest=3.0)


def test_a_hospital_that_claims_more_than_it_described_is_left_out(tmp_path: Path) -> None:
    boasting = hospital("c", 1.0, 100, lambda task, reply: replace(reply, examples=2 * 100 + 64 + 1))
    honest = hospital("d", 1.0, 100, lambda task, reply: replace(reply, examples=2 * 100 + 64))
    record = run(tmp_path, [*three()[:2], boasting, honest], short_plan()).records()[1]
    assert record["rejected"] == [{"site": "c", "code": "CLAIM"}]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_all_start_from_the_same_coarse_weights_and_small_steps_still_add_up(tmp_path: Path, precision: str) -> None:
    seen: list[tuple[int, str]] = []

    def look(task: Task, reply: Reply) -> Reply:
        if task.kind == "pretrain":
            packing = plan_from_text(task.plan_text).transport.down(task.kind)
            seen.append((task.round, digest(decode(task.state, packing, 10**6))))
            assert seen[-1][1] == task.state_digest
        return reply

    transport = {"broadcast": precision, "update": precision, "compress": "zstd", "difference": False}
    nodes = [hospital(name, 1e-5, 10, look) for name in "abc"]
    store = run(tmp_path, nodes, planned(short_plan(), transport=transport))
    assert moved(store) == pytest.approx(3e-5, rel=0.02), "a step below the resolution of a weight"
    assert len(seen) == 9
    assert len(set(seen)) == 3
    exact = run(tmp_path / "exact", three(), short_plan()).records()[1]
    assert store.records()[1]["bytes_sent"] < 0.5 * exact["bytes_sent"]


@pytest.mark.parametrize(("update", "expected"), [("int8", [0, 1, 1, 3]), ("float32", [0, 0, 0, 0])])
def test_a_task_whose_update_is_rounded_says_which_was_taken_in_last(
    tmp_path: Path, update: str, expected: list[int]
) -> None:
    seen: list[int] = []

    def look(task: Task, reply: Reply) -> Reply:
        seen.append(task.control_round)
        return replace(reply, examples=0) if task.round == 2 else reply

    first = short_plan().stages[0]
    assert isinstance(first, PretrainStage)
    four = replace(short_plan(), stages=(replace(first, rounds=4),))
    transport = {"broadcast": "float32", "update": update, "compress": "none"}
    run(tmp_path, [*three(), hospital("late", 0.1, 10, look)], planned(four, transport=transport))
    assert seen == expected


def test_an_evaluation_is_of_the_very_weights_that_are_kept(tmp_path: Path) -> None:
    weights: list[State] = []

    def look(task: Task, reply: Reply) -> Reply:
        if task.kind == "evaluate":
            weights.append(decode(task.state, plan_from_text(task.plan_text).transport.down(task.kind), 10**6))
        return reply

    nodes = [hospital(name, 1e-3, 10, look) for name in "ab"]
    store = run(
        tmp_path, nodes, planned(plan(), transport={"broadcast": "int8", "compress": "zstd", "difference": False})
    )
    assert {digest(each) for each in weights} == {digest(store.stage_state("detect"))}


def test_a_quorum_too_small_for_the_rule_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"federation.quorum: expected at least 7 for aggregation.rule krum, found 3"
    ):
        planned(plan(quorum=3), aggregation={"rule": {"kind": "krum", "attackers": 2}})


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_a_rule_that_judges_single_numbers_is_refused_where_most_are_not_sent(rule: str) -> None:
    with pytest.raises(
        SettingsError, match=f"transport.update: expected all numbers for aggregation.rule {rule}, .* found topk"
    ):
        planned(plan(quorum=3), aggregation={"rule": {"kind": rule}}, transport={"update": "topk"})
    for linear in ("angle-mean", "bounded-mean"):
        planned(plan(quorum=3), aggregation={"rule": {"kind": linear}}, transport={"update": "topk"})


@pytest.mark.parametrize("rule", ["krum", "geometric-median"])
def test_a_rule_that_compares_updates_is_refused_where_they_overlap_little(rule: str) -> None:
    with pytest.raises(
        SettingsError, match=f"transport.update: expected all numbers for aggregation.rule {rule}, .* found topk"
    ):
        planned(plan(quorum=5), aggregation={"rule": {"kind": rule}}, transport={"update": "topk"})


def test_directions_are_not_compared_where_updates_overlap_little() -> None:
    with pytest.raises(
        SettingsError, match=r"transport.update: expected all numbers for federation.cosine, .* found topk"
    ):
        planned(plan(quorum=3, cosine=0.0), transport={"update": "topk"})
    planned(plan(quorum=3, longest=3.0), transport={"update": "topk"})


def test_the_plans_of_before_mean_the_exact_mean_and_travel_whole() -> None:
    assert plan().aggregation == Aggregation()
    whole = planned(plan(quorum=3), aggregation=ADAM | {"rule": {"kind": "trimmed-mean", "share": 0.1}})
    assert plan_from_text(plan_to_text(whole)) == whole


def test_rounds_in_which_nothing_moved_do_not_make_outliers_of_all_that_follow(tmp_path: Path) -> None:
    def later(task: Task, reply: Reply) -> Reply:
        if task.round > 1:
            return reply
        return replace(reply, update=pack({name: 0 * each for name, each in unpack(reply.update).items()}))

    store = run(tmp_path, [hospital(name, 0.1, 10, later) for name in "abc"], short_plan(outlier=10.0))
    assert [record["rejected"] for record in store.records()] == [[]] * 4


def grown(task: Task, reply: Reply) -> Reply:
    if task.round == 1:
        return reply
    return replace(reply, update=pack({name: 1000 * each for name, each in unpack(reply.update).items()}))


@pytest.mark.parametrize("still", [0, 1, 2])
def test_a_limit_that_most_hospitals_have_outgrown_holds_nobody_up(tmp_path: Path, still: int) -> None:
    nodes = [hospital(name, 0.1, 10, *[grown] * (index >= still)) for index, name in enumerate("abcde")]
    store = run(tmp_path, nodes, short_plan(outlier=10.0, repeats=0, quorum=2))
    assert [record["rejected"] for record in store.records()] == [[]] * 4


def test_half_of_the_hospitals_move_no_limit(tmp_path: Path) -> None:
    nodes = [*three()[:2], *(hospital(name, 0.1, 10, grown) for name in "de")]
    records = run(tmp_path, nodes, short_plan(outlier=10.0)).records()
    assert [{line["site"] for line in record["rejected"]} for record in records] == [
        set(),
        set(),
        {"d", "e"},
        {"d", "e"},
    ]
    assert records[2]["hospitals"][2]["update_norm"] > 100 * records[2]["hospitals"][1]["update_norm"]


def test_who_changes_what_each_hospital_keeps_for_itself_is_left_out(tmp_path: Path) -> None:
    def keeps(task: Task, reply: Reply) -> Reply:
        update = unpack(reply.update) if reply.update else {}
        return replace(reply, update=pack({n: 0 * t if "norm" in n else t for n, t in update.items()}))

    own = planned(short_plan(), aggregation={"keep_local": ["*norm*"]})
    nodes = [hospital("a", 0.1, 10, keeps), hospital("b", 0.1, 10, keeps), hospital("c", 0.1, 10)]
    assert run(tmp_path, nodes, own).records()[1]["rejected"] == [{"site": "c", "code": "LOCAL"}]


@pytest.mark.parametrize("step", ["add", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_the_teacher_is_the_mean_of_the_hospitals_whatever_the_servers_step(tmp_path: Path, step: str) -> None:
    first = short_plan().stages[0]
    assert isinstance(first, PretrainStage)
    taught = replace(short_plan(), stages=(replace(first, rounds=2, objective="features"),))
    store = run(tmp_path, three(), planned(taught, aggregation={"step": {"kind": step}}))
    before, after = start_of(store), store.stage_state("mae")
    changes = {name: float((after[name] - before[name]).double().mean()) for name in before}
    mean = pytest.approx(2 * (0.3 - 0.1 + 0.01) / 3, rel=1e-3)
    assert {name for name in changes if name.startswith("teacher.")}
    assert all(change == mean for name, change in changes.items() if name.startswith("teacher."))
    others = [change == mean for name, change in changes.items() if not name.startswith("teacher.")]
    assert all(others) if step == "add" else not any(others)
