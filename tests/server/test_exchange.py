"""Who is asked again and who is not waited for, over nodes that fail, restart, leave and come back; the clock is the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count

import pytest
from flwr.app import Error, Message

from cxrbase_model.messages import Code, Reply, Task, WireError, reply_from_message, reply_to_message, task_from_message
from server.exchange import Exchange, Node, Stopped
from sim.grid import LocalGrid
from tests.server.conftest import Clock

WAIT = 30.0  # seconds for a thread that is told to end; reached only where something is wrong

TASK = Task("describe", "run", 0, "describe", 1, "", "{}", "d" * 64)


def answers(message: Message) -> Message:
    task = task_from_message(message)
    return reply_to_message(Reply("site", task.kind, task.round, task.stage, task.plan_digest), message)


def fails(message: Message) -> Message:
    return Message(Error(code=0, reason="the process died"), reply_to=message)


def silent(message: Message) -> None:
    return None


def in_turn(*behaviours: Callable[[Message], Message | None]) -> Callable[[Message], Message | None]:
    """A node that treats the first message it is sent by the first behaviour, the second by the second and so on."""
    seen: dict[str, Callable[[Message], Message | None]] = {}
    left = iter(behaviours)

    def node(message: Message) -> Message | None:
        if message.metadata.message_id not in seen:
            seen[message.metadata.message_id] = next(left)
        return seen[message.metadata.message_id](message)

    return node


def asked(grid: LocalGrid, *numbers: int, deadline: float = 600.0, absence: float | None = None) -> list[int]:
    """The nodes whose replies come, in the order in which they come."""
    replies = Exchange(grid).ask(dict.fromkeys(numbers, TASK), deadline, absence)
    return [number for number, message in replies if not message.has_error()]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_node_whose_process_died_is_asked_again(clock: Clock, failures: int) -> None:
    grid = LocalGrid({1: in_turn(*[fails] * failures, answers)})
    assert asked(grid, 1) == [1]
    assert grid.pushed == failures + 1


def test_a_node_whose_process_died_three_times_is_given_up_at_once(clock: Clock) -> None:
    grid = LocalGrid({1: fails})
    ((number, message),) = Exchange(grid).ask({1: TASK}, 600)
    assert (number, grid.pushed) == (1, 3)
    assert clock.now < 1600, "nobody waits for the deadline"
    with pytest.raises(WireError, match=Code.NO_REPLY):
        reply_from_message(message)


def test_a_node_that_restarted_is_asked_again_and_only_its_new_answer_counts(clock: Clock) -> None:
    told = count()

    def numbered(message: Message) -> Message:
        task = task_from_message(message)
        return reply_to_message(Reply(f"answer {next(told)}", task.kind, 0, task.stage, task.plan_digest), message)

    restarted: list[bool] = []
    late = in_turn(lambda message: numbered(message) if len(restarted) > 1 else None, numbered)
    grid = LocalGrid({1: late})

    def restart() -> None:
        grid.started[1] = "later"
        restarted.append(True)

    clock.after(5, restart)
    exchange = Exchange(grid)
    replies = list(exchange.ask({1: TASK}, 600))
    assert [reply_from_message(message).site for _, message in replies] == ["answer 0"]
    assert (grid.pushed, grid.waiting) == (2, 1), "the first message still waits for its reply"
    restarted.append(True)
    grid.nodes[2] = answers
    assert [number for number, _ in exchange.ask({2: TASK}, 600)] == [2]
    assert grid.waiting == 0, "the late reply is taken and thrown away"


def test_a_node_that_restarts_again_and_again_is_asked_three_times(clock: Clock) -> None:
    grid = LocalGrid({1: silent})
    for number in range(1, 9):
        clock.after(5.0 * number, partial(grid.started.update, {1: str(number)}))
    assert asked(grid, 1) == []
    assert grid.pushed == 3
    assert clock.now < 1030, "and is not waited for after that"


def test_a_node_that_comes_back_with_its_task_answers_it(clock: Clock) -> None:
    grid = LocalGrid({1: answers})
    grid.absent.add(1)
    clock.after(300, grid.absent.clear)
    assert asked(grid, 1) == [1]
    assert grid.pushed == 1, "what was never sent is not sent twice"


def test_a_node_that_is_gone_and_comes_back_as_another_process_is_asked_again(clock: Clock) -> None:
    grid = LocalGrid({1: in_turn(silent, answers)})
    clock.after(10, lambda: grid.absent.add(1))
    clock.after(300, grid.absent.clear)
    clock.after(300, lambda: grid.started.update({1: "later"}))
    assert asked(grid, 1, absence=600.0) == [1]
    assert grid.pushed == 2


def test_a_present_but_silent_node_is_waited_for_until_the_deadline(clock: Clock) -> None:
    grid = LocalGrid({1: answers, 2: silent})
    assert asked(grid, 1, 2, absence=5.0) == [1]
    assert clock.now == pytest.approx(1600, abs=1)


def test_nodes_that_are_gone_end_the_wait_after_their_absence(clock: Clock) -> None:
    grid = LocalGrid({1: answers, 2: silent, 3: silent})
    clock.after(20, lambda: grid.absent.update({2, 3}))
    assert asked(grid, 1, 2, 3, absence=60.0) == [1]
    assert 1080 <= clock.now < 1085


def test_one_that_comes_back_within_its_absence_is_waited_for_again(clock: Clock) -> None:
    grid = LocalGrid({1: silent})
    clock.after(10, lambda: grid.absent.add(1))
    clock.after(50, grid.absent.clear)
    clock.after(100, lambda: grid.absent.add(1))
    assert asked(grid, 1, absence=60.0) == []
    assert 1160 <= clock.now < 1165, "its absence is counted anew"


def test_nodes_that_are_gone_are_waited_for_as_long_as_the_others_do_not_suffice(clock: Clock) -> None:
    grid = LocalGrid({1: silent, 2: answers})
    grid.absent.add(1)
    replies = Exchange(grid).ask({1: TASK, 2: TASK}, 600, 60, enough=lambda: clock.now >= 1400)
    assert [number for number, _ in replies] == [2]
    assert 1400 <= clock.now < 1405


def test_a_message_that_could_not_be_sent_is_sent_again(clock: Clock) -> None:
    class Full(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            ids = list(super().push_messages(messages))
            return [""] if self.pushed == 1 else ids

    grid = Full({1: answers})
    assert asked(grid, 1) == [1]
    assert grid.pushed == 2


def test_the_reply_of_one_that_was_not_waited_for_is_thrown_away_at_the_next_question(clock: Clock) -> None:
    awake: list[bool] = []
    grid = LocalGrid({1: lambda message: answers(message) if awake else None, 2: answers})
    exchange = Exchange(grid)
    assert [number for number, _ in exchange.ask({1: TASK, 2: TASK}, 60)] == [2]
    assert grid.waiting == 1
    awake.append(True)
    assert [number for number, _ in exchange.ask({2: TASK}, 60)] == [2]
    assert grid.waiting == 0


def test_those_who_have_not_answered_are_told_while_they_are_waited_for(clock: Clock) -> None:
    looks: list[tuple[list[Node], list[int]]] = []
    grid = LocalGrid({1: answers, 2: silent}, names={1: "riverside", 2: "lindenhof"})
    exchange = Exchange(grid, on_wait=lambda nodes, waiting: looks.append((nodes, waiting)))
    list(exchange.ask({1: TASK, 2: TASK}, 7))
    assert looks[0] == ([Node(1, "riverside"), Node(2, "lindenhof")], [1, 2])
    assert [waiting for _, waiting in looks[1:]] == [[2]] * (len(looks) - 1)
    assert 3 <= len(looks) <= 5, "every two seconds"


def test_a_wait_ends_when_the_run_is_to_stop(clock: Clock) -> None:
    exchange = Exchange(LocalGrid({1: silent}), should_stop=lambda: clock.now >= 1010)
    with pytest.raises(Stopped):
        list(exchange.ask({1: TASK}, 600))
    assert clock.now < 1011


class Uploading(LocalGrid):
    """The first messages to the first `slow` of the nodes have replies whose upload goes on until `done` is set."""

    def __init__(self, nodes: int = 2, slow: int = 1) -> None:
        super().__init__(dict.fromkeys(range(1, nodes + 1), answers))
        self.done = threading.Event()
        self._slow = {f"message-{number}" for number in range(1, slow + 1)}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the upload as Flower does."""
        if self._slow & set(message_ids):
            self.done.wait(WAIT)
        return super().pull_messages(message_ids)


@pytest.fixture
def uploading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploading]:
    monkeypatch.setattr("server.exchange._PULL", 0.005)  # of the true clock
    grid = Uploading()
    yield grid
    grid.done.set()


def test_an_upload_that_stalls_holds_up_neither_the_others_nor_the_deadline(clock: Clock, uploading: Uploading) -> None:
    assert asked(uploading, 1, 2, deadline=30.0) == [2]


@pytest.mark.parametrize(("slow", "come"), [(2, [3, 4, 5, 6]), (3, [4, 5, 6]), (4, [])])
def test_two_that_send_slowly_keep_the_others_out_for_a_while_and_four_bound_the_memory(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, slow: int, come: list[int]
) -> None:
    monkeypatch.setattr("server.exchange._SLOW", 1.0)
    monkeypatch.setattr("server.exchange._PULL", 0.005)  # of the true clock
    grid = Uploading(6, slow)
    try:
        assert asked(grid, *range(1, 7), deadline=4.0) == come
    finally:
        grid.done.set()


def test_a_node_that_restarts_in_the_middle_of_its_upload_is_asked_again(clock: Clock, uploading: Uploading) -> None:
    clock.after(10, lambda: uploading.started.update({1: "later"}))
    assert asked(uploading, 1, 2) == [2, 1]
    assert uploading.pushed == 3


def test_no_more_than_two_replies_are_fetched_at_the_same_time(clock: Clock) -> None:
    fetching, most = threading.Semaphore(0), [0]

    class Counting(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            under_way.append(1)
            most[0] = max(most[0], len(under_way))
            fetching.acquire(timeout=0.3)
            under_way.pop()
            return super().pull_messages(message_ids)

    under_way: list[int] = []
    assert sorted(asked(Counting(dict.fromkeys(range(1, 6), answers)), *range(1, 6))) == [1, 2, 3, 4, 5]
    assert most[0] == 2


def test_of_many_late_replies_one_is_fetched_at_a_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange._PULL", 0.005)  # of the true clock
    awake = threading.Event()
    begun: list[str] = []

    class Late(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            if awake.is_set() and not self.done.is_set():
                begun.extend(message_ids)
                self.done.wait(WAIT)
            return super().pull_messages(message_ids)

        done = threading.Event()

    grid = Late(dict.fromkeys(range(1, 6), lambda message: answers(message) if awake.is_set() else None))
    exchange = Exchange(grid)
    assert list(exchange.ask(dict.fromkeys(range(1, 6), TASK), 3)) == []
    awake.set()
    try:
        assert list(exchange.ask({9: TASK}, 20)) == []
    finally:
        grid.done.set()
    assert begun == ["message-1"]
    assert (list(exchange.ask({9: TASK}, 20)), grid.waiting) == ([], 0), "all are dropped once the first one has come"


def test_an_error_in_a_late_reply_does_not_end_the_run(clock: Clock) -> None:
    class Torn(LocalGrid):
        torn = False

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            if self.torn and "message-1" in message_ids:
                raise ConnectionError("the reply is torn")
            return super().pull_messages(message_ids)

    grid = Torn({1: silent, 2: answers})
    exchange = Exchange(grid)
    assert [number for number, _ in exchange.ask({1: TASK, 2: TASK}, 5)] == [2]
    grid.torn = True
    assert [number for number, _ in exchange.ask({2: TASK}, 5)] == [2]
