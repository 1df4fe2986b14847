"""What a run says of itself while it goes on, and how the operator holds and ends it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from server.exchange import Exchange, Node, Stopped
from server.live import Live, Requests, read_status
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid
from tests.server.conftest import Clock
from tests.server.hospitals import hospital, short_plan

Seen = list[dict[str, Any] | None]


def grid_of(*names: str) -> LocalGrid:
    nodes = {number: hospital(name, 1.0, 10) for number, name in enumerate(names, 1)}
    return LocalGrid(nodes, dict(enumerate(names, 1)))


def run(folder: Path, grid: LocalGrid, *observers: Any, resume: bool = False) -> RunStore:
    store = RunStore.resume(folder, short_plan()) if resume else RunStore.create(folder, short_plan())
    live = Live(folder)
    RoundLoop(Exchange(grid, on_wait=live.look), store, live, observers=observers).run()
    return store


def at(number: int, action: Any) -> Any:
    """An observer that does something once a round is committed."""
    return lambda record: action() if record["round"] == number else None


def test_a_round_says_who_is_there_and_who_has_not_answered_yet(tmp_path: Path) -> None:
    seen: Seen = []
    grid = grid_of("a", "b", "c")
    inner = grid.nodes[2]

    def watched(message: Message) -> Message | None:
        seen.append(read_status(tmp_path))
        return inner(message)

    grid.nodes[2] = watched
    run(tmp_path, grid)
    status = seen[1]
    assert status is not None
    assert (status["state"], status["round"], status["stage"], status["attempt"]) == ("running", 1, "mae", 1)
    assert status["waiting_for"] == ["a", "b", "c"]
    assert {name: node["online"] for name, node in status["nodes"].items()} == {"a": True, "b": True, "c": True}
    assert status["process"] == os.getpid()
    assert seen[0] is not None
    assert seen[0]["state"] == "gathering"


def test_hospitals_without_names_are_listed_once_they_have_said_theirs(tmp_path: Path) -> None:
    grid = grid_of("a", "b")
    grid.names.clear()
    run(tmp_path, grid)
    status = read_status(tmp_path)
    assert status is not None
    assert status["nodes"].keys() == {"a", "b"}


def test_pause_holds_before_the_next_round_and_resume_lets_it_go_on(tmp_path: Path, clock: Clock) -> None:
    grid, requests, seen = grid_of("a", "b"), Requests(tmp_path), []

    def hold() -> None:
        requests.ask("pause")
        clock.after(40, lambda: grid.absent.add(2))
        clock.after(
            50, lambda: seen.append((read_status(tmp_path), RunStore(tmp_path, short_plan()).records()[-1]["round"]))
        )
        clock.after(60, grid.absent.clear)
        clock.after(100, lambda: requests.withdraw("pause"))

    store = run(tmp_path, grid, at(1, hold))
    ((status, newest),) = seen
    assert status is not None
    assert (status["state"], newest) == ("paused", 1)
    assert {name: node["online"] for name, node in status["nodes"].items()} == {"a": True, "b": False}, (
        "it is not stale"
    )
    assert clock.now >= 1100
    assert [record["round"] for record in store.records()] == [0, 1, 2, 3]


def test_a_pause_is_still_asked_for_after_an_interruption(tmp_path: Path, clock: Clock) -> None:
    def interrupted() -> None:
        Requests(tmp_path).ask("pause")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tmp_path, grid_of("a", "b"), at(1, interrupted))
    clock.after(70, lambda: Requests(tmp_path).withdraw("pause"))
    run(tmp_path, grid_of("a", "b"), resume=True)
    assert clock.now >= 1070


def test_stop_ends_after_the_round_and_the_next_session_goes_on(tmp_path: Path) -> None:
    grid, requests = grid_of("a", "b"), Requests(tmp_path)
    with pytest.raises(Stopped):
        run(tmp_path, grid, at(2, lambda: requests.ask("stop")))
    assert RunStore(tmp_path, short_plan()).records()[-1]["round"] == 2
    requests.withdraw("stop")
    assert run(tmp_path, grid, resume=True).records()[-1]["round"] == 3


def test_stop_that_comes_in_the_last_round_leaves_nothing_undone(tmp_path: Path) -> None:
    store = run(tmp_path, grid_of("a", "b"), at(3, lambda: Requests(tmp_path).ask("stop")))
    assert store.records()[-1]["round"] == 3


def test_a_paused_run_can_be_stopped(tmp_path: Path, clock: Clock) -> None:
    requests = Requests(tmp_path)

    def hold() -> None:
        requests.ask("pause")
        clock.after(30, lambda: requests.ask("stop"))

    with pytest.raises(Stopped):
        run(tmp_path, grid_of("a", "b"), at(1, hold))
    assert 1030 <= clock.now < 1031
    assert RunStore(tmp_path, short_plan()).records()[-1]["round"] == 1


def test_taking_back_what_was_not_asked_for_is_no_error(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    requests.withdraw("stop")
    assert not requests.asked("stop")
    requests.ask("stop")
    requests.ask("stop")
    assert (requests.asked("stop"), requests.asked("pause")) == (True, False)


def test_the_file_is_written_when_something_changes_and_every_two_seconds(tmp_path: Path, clock: Clock) -> None:
    live, riverside, lindenhof = Live(tmp_path), Node(1, "riverside"), Node(2, "lindenhof")

    def age_after(seconds: float, nodes: list[Node], waiting: list[int]) -> float:
        """How old the file is after a look that comes some seconds after the one before."""
        clock.now += seconds
        live.look(nodes, waiting)
        status = read_status(tmp_path)
        assert status is not None
        return round(clock.time() - float(status["updated"]), 3)

    assert age_after(0.5, [riverside], []) == 0, "a hospital came"
    assert age_after(0.5, [riverside], []) == 0.5, "nothing has changed"
    assert age_after(0.5, [riverside, lindenhof], []) == 0, "another one came"
    assert age_after(0.5, [riverside, lindenhof], [1]) == 0, "one is waited for"
    assert age_after(0.5, [lindenhof], [1]) == 0, "it has gone"
    assert age_after(1.5, [lindenhof], [1]) == 1.5
    assert age_after(0.5, [lindenhof], [1]) == 0, "two seconds have passed"


def test_last_seen_is_the_last_sign_of_life_and_outlives_the_session(tmp_path: Path, clock: Clock) -> None:
    Live(tmp_path).look([Node(1, "a", heard=123.0), Node(2, "b")], [])
    clock.now += 500
    Live(tmp_path).look([Node(2, "b")], [])
    status = read_status(tmp_path)
    assert status is not None
    assert status["nodes"] == {
        "a": {"online": False, "last_seen": 123.0},
        "b": {"online": True, "last_seen": clock.time()},
    }


def test_a_status_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir(parents=True)
    assert run(tmp_path, grid_of("a", "b")).records()[-1]["round"] == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 2}', '"schema"', "\x00\x00"])
def test_a_damaged_status_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) is None
    Live(tmp_path).tell("gathering", "a sentence")
    status = read_status(tmp_path)
    assert status is not None
    assert (status["state"], status["detail"], status["nodes"]) == ("gathering", "a sentence", {})
    assert json.loads((tmp_path / "status.json").read_text()) == status
