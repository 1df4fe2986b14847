"""A run waits for its hospitals instead of failing: refusals that are mended, quorums that come back, keys that are new.

The clock is the test's own, so hours of waiting take no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from cxrbase_model.messages import Code, Reply, reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from server.exchange import Exchange, Stopped
from server.live import Live, Requests, read_status
from server.rounds import RoundLoop, RunFailed
from server.store import RunStore
from sim.grid import LocalGrid, Node
from tests.server.conftest import Clock
from tests.server.hospitals import hospital, short_plan

NAMES = {1: "a", 2: "b", 3: "c"}
SLOW = {"deadline": 120, "join_deadline": 300, "absence": 40}
ROUNDS = [0, 1, 2, 3]


def refusing(name: str, code: Callable[[], Code | None]) -> Node:
    """A hospital that refuses to describe itself as long as `code` gives a code."""
    inner = hospital(name, 1.0, 10)

    def node(message: Message) -> Message | None:
        task, why = task_from_message(message), code()
        if task.kind == "describe" and why is not None:
            return reply_to_message(Reply(name, task.kind, 0, task.stage, task.plan_digest, code=why), message)
        return inner(message)

    return node


def hospitals(*names: str) -> LocalGrid:
    return LocalGrid({number: hospital(name, 1.0, 10) for number, name in enumerate(names, 1)}, NAMES)


def loop(
    folder: Path, grid: LocalGrid, the_plan: Plan | None = None, *, resume: bool = False, **settings: Any
) -> tuple[RoundLoop, RunStore]:
    the_plan = the_plan or short_plan(**SLOW)
    store = RunStore.resume(folder, the_plan) if resume else RunStore.create(folder, the_plan)
    live = Live(folder)
    return RoundLoop(Exchange(grid, on_wait=live.look), store, live, **{"patience": 30.0, **settings}), store


def sites(store: RunStore, number: int) -> dict[str, str]:
    return {line["site"]: line["code"] or line["status"] for line in store.records()[number]["hospitals"]}


def test_a_hospital_that_has_refused_is_asked_again_until_it_has_mended_what_was_wrong(
    tmp_path: Path, clock: Clock
) -> None:
    grid = hospitals("a", "b")
    grid.nodes[2] = refusing("b", lambda: Code.APPROVAL if clock.now < 1100 else None)
    run, store = loop(tmp_path, grid, expected=2)
    run.run()
    assert [record["round"] for record in store.records()] == ROUNDS
    assert sites(store, 0) == {"a": "admitted", "b": "admitted"}
    assert 1100 <= clock.now < 1140, "it is asked every half minute"


def test_a_hospital_that_has_refused_joins_a_run_that_goes_on_without_it(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b", "c")
    mended: list[bool] = []
    grid.nodes[3] = refusing("c", lambda: None if mended else Code.CACHE_MISSING)
    run, store = loop(
        tmp_path, grid, expected=3, observers=[lambda record: mended.append(True) if record["round"] == 2 else None]
    )
    run.run()
    assert [sorted(sites(store, number)) for number in (0, 1, 2, 3)] == [
        ["a", "b", "c"],
        ["a", "b"],
        ["a", "b"],
        ["a", "b", "c"],
    ]
    assert sites(store, 0)["c"] == "CACHE_MISSING"


def test_a_run_that_never_finds_its_quorum_says_what_the_hospitals_said_last(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b")
    grid.nodes[2] = refusing("b", lambda: Code.CACHE_MISSING if clock.now < 1100 else Code.APPROVAL)
    run, _ = loop(tmp_path, grid, expected=2)
    with pytest.raises(RunFailed, match=r"1 hospitals joined within 300 s, the quorum is 2 \(b: APPROVAL"):
        run.run()


def test_a_hospital_whose_process_dies_is_told_by_the_name_of_its_key(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b")
    grid.nodes[2] = lambda message: Message(Error(code=0, reason="died"), reply_to=message)
    run, _ = loop(tmp_path, grid, expected=2, patience=0.0)
    with pytest.raises(RunFailed, match=r"\(b: NO_REPLY"):
        run.run()


def test_a_round_waits_for_its_quorum_and_uses_up_no_attempt(tmp_path: Path, clock: Clock) -> None:
    grid, seen = hospitals("a", "b"), []

    def leave(record: dict[str, Any]) -> None:
        if record["round"] == 1:
            grid.absent.add(2)
            clock.after(200, grid.absent.clear)
            clock.after(100, lambda: seen.append(read_status(tmp_path)))

    run, store = loop(tmp_path, grid, observers=[leave])
    run.run()
    assert [(record["round"], record["attempt"]) for record in store.records()] == [(number, 1) for number in ROUNDS]
    assert clock.now >= 1200
    (status,) = seen
    assert status is not None
    assert (status["state"], status["detail"]) == ("gathering", "round 2 needs 2 hospitals, 1 are there")
    assert {name: node["online"] for name, node in status["nodes"].items()} == {"a": True, "b": False}


def test_a_quorum_that_does_not_come_back_ends_the_run_which_can_go_on_later(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b")
    run, _ = loop(tmp_path, grid, observers=[lambda record: grid.absent.add(2)])
    with pytest.raises(
        RunFailed, match=r"round 1 \(mae\): 1 hospitals were there within 300 s, the quorum is 2.*resume when"
    ):
        run.run()
    run, store = loop(tmp_path, hospitals("a", "b"), resume=True)
    run.run()
    assert [record["round"] for record in store.records()] == ROUNDS


def test_a_round_that_has_failed_for_the_last_time_is_not_waited_after(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b")
    grid.nodes[2] = hospital("b", 1.0, 10, lambda task, reply: replace(reply, code=Code.FAILED, update=b""))
    run, _ = loop(tmp_path, grid)
    with pytest.raises(RunFailed, match="had no quorum of 2 in 2 attempts"):
        run.run()
    assert 1030 <= clock.now < 1060, "once between the two attempts"


class Killed(BaseException):
    pass


def interrupted(folder: Path, after: int) -> None:
    """A run of a, b and c that was killed after a round."""

    def kill(record: dict[str, Any]) -> None:
        if record["round"] == after:
            raise Killed

    run, _ = loop(folder, hospitals("a", "b", "c"), expected=3, observers=[kill])
    with pytest.raises(Killed):
        run.run()


@pytest.mark.parametrize(("back_after", "there"), [(20, ["a", "b", "c"]), (200, ["a", "b"])])
def test_after_an_interruption_the_hospitals_of_the_last_round_are_waited_for_up_to_their_absence(
    tmp_path: Path, clock: Clock, back_after: float, there: list[str]
) -> None:
    interrupted(tmp_path, after=2)
    grid, begun = hospitals("a", "b", "c"), clock.now
    grid.absent.add(3)
    clock.after(back_after, grid.absent.clear)
    times: list[float] = []
    run, store = loop(tmp_path, grid, resume=True, expected=3, observers=[lambda record: times.append(clock.now)])
    run.run()
    assert sorted(sites(store, 3)) == there
    assert times[0] - begun == pytest.approx(min(back_after, 40), abs=1)


def test_after_an_interruption_nobody_waits_who_was_not_there_before(tmp_path: Path, clock: Clock) -> None:
    interrupted(tmp_path, after=2)
    begun = clock.now
    run, store = loop(tmp_path, hospitals("a", "b", "c"), resume=True, expected=9)
    run.run()
    assert clock.now - begun < 1
    assert [record["round"] for record in store.records()] == ROUNDS


def test_after_an_interruption_a_quorum_is_waited_for_beyond_the_absence(tmp_path: Path, clock: Clock) -> None:
    interrupted(tmp_path, after=2)
    grid, begun = hospitals("a", "b", "c"), clock.now
    grid.absent.update({2, 3})
    clock.after(200, lambda: grid.absent.discard(2))
    run, store = loop(tmp_path, grid, resume=True)
    run.run()
    assert clock.now - begun == pytest.approx(200, abs=1)
    assert sorted(sites(store, 3)) == ["a", "b"]


def test_who_speaks_under_another_name_than_its_keys_does_not_take_part(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b", "a")
    run, store = loop(tmp_path, grid, expected=3, patience=0.0)
    run.run()
    assert sites(store, 0) == {"a": "admitted", "b": "admitted", "c": "IDENTITY"}
    assert sites(store, 1) == {"a": "admitted", "b": "admitted"}


def test_a_hospital_that_comes_back_with_a_new_key_takes_its_old_place(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b")

    def renew(record: dict[str, Any]) -> None:
        if record["round"] == 1:
            grid.nodes[12], grid.names[12] = hospital("b", 1.0, 10), "b"
            del grid.nodes[2]

    run, store = loop(tmp_path, grid, observers=[renew])
    run.run()
    assert [sites(store, number) for number in (1, 2)] == [{"a": "admitted", "b": "admitted"}] * 2
    assert {record["attempt"] for record in store.records()} == {1}


def test_while_its_old_node_is_there_a_new_one_of_the_same_hospital_waits(tmp_path: Path, clock: Clock) -> None:
    grid = hospitals("a", "b", "c")
    asked: list[int] = []

    def watched(message: Message) -> Message | None:
        asked.append(task_from_message(message).round)
        return hospital("b", 1.0, 10)(message)

    def renew(record: dict[str, Any]) -> None:
        if record["round"] == 1:
            grid.nodes[12], grid.names[12] = watched, "b"
        if record["round"] == 2:
            del grid.nodes[2]

    run, store = loop(tmp_path, grid, observers=[renew])
    run.run()
    assert [sorted(sites(store, number)) for number in (2, 3)] == [["a", "b", "c"]] * 2
    assert [number for number in asked if number] == [3], "it trains from the round on in which the old one is gone"


@pytest.mark.parametrize("moment", [50, 200])
def test_a_run_that_waits_for_its_hospitals_can_be_stopped(tmp_path: Path, clock: Clock, moment: float) -> None:
    grid = hospitals("a", "b")
    if moment == 50:
        grid.absent.add(2)
    run, store = loop(
        tmp_path, grid, short_plan(join_deadline=600), expected=2, observers=[lambda record: grid.absent.add(2)]
    )
    clock.after(moment, lambda: Requests(tmp_path).ask("stop"))
    with pytest.raises(Stopped):
        run.run()
    assert clock.now == pytest.approx(1000 + moment, abs=1)
    assert len(store.records()) == (moment == 200)
