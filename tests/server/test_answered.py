"""The SuperLink is asked once for all replies; Flower's own Grid speaks to a SuperLink's answers kept in memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from server.answered import answered
from server.exchange import Exchange
from sim.grid import LocalGrid
from tests.server.conftest import Clock
from tests.server.test_exchange import TASK


class SuperLink:
    """What a SuperLink says to a Grid: a reply is named once, then its objects can be fetched until it has been confirmed."""

    def __init__(self) -> None:
        self.questions: list[list[str]] = []
        self.confirmed: list[str] = []
        self._replies: dict[str, Message] = {}
        self._objects: dict[str, bytes] = {}

    def answer(self, question: str, value: float) -> None:
        content = RecordDict({"weights": ArrayRecord([np.full(3, value)])})
        message = Message(content, dst_node_id=1, message_type="train")
        message.metadata.__dict__.update(_reply_to_message_id=question, _src_node_id=7, _run_id=5)
        message.metadata.__dict__["_message_id"] = message.object_id
        self._objects |= {name: each.deflate() for name, each in get_all_nested_objects(message).items()}
        self._replies[question] = message

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802  # Flower's names
        self.questions.append(list(request.message_ids))
        found = [self._replies.pop(each) for each in request.message_ids if each in self._replies]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message in found],
            message_object_trees=[get_object_tree(message) for message in found],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self._objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link: SuperLink) -> HttpGrid:
    grid = HttpGrid(token="test")
    grid._client = link  # type: ignore[assignment]
    grid._run = Run.create_empty(5)
    return grid


def values(messages: Iterable[Message]) -> list[float]:
    return [float(message.content.array_records["weights"].to_numpy_ndarrays()[0][0]) for message in messages]


def test_one_question_names_those_that_have_answered(link: SuperLink, grid: HttpGrid) -> None:
    assert answered(grid, ["a", "b", "c"]) == {}
    link.answer("c", 3.0)
    link.answer("a", 1.0)
    found = answered(grid, ["a", "b", "c"])
    assert sorted(found) == ["a", "c"]
    assert link.questions == [["a", "b", "c"]] * 2
    assert link.confirmed == [], "nothing is fetched before it is asked for"


def test_each_is_fetched_by_itself_without_a_further_question(link: SuperLink, grid: HttpGrid) -> None:
    link.answer("a", 1.0)
    link.answer("c", 3.0)
    found = answered(grid, ["a", "b", "c"])
    assert values(found["c"]()) == [3.0]
    assert len(link.confirmed) == 1
    assert values(found["a"]()) == [1.0]
    assert (len(link.questions), len(link.confirmed)) == (1, 2)
    assert list(grid.pull_messages(["b"])) == [], "the Grid itself still asks"
    assert link.questions[1:] == [["b"]]


def test_nothing_is_asked_where_nobody_is_waited_for(link: SuperLink, grid: HttpGrid) -> None:
    assert answered(grid, []) == {}
    assert link.questions == []


def test_a_grid_that_can_only_fetch_is_asked_for_each() -> None:
    grid = LocalGrid({1: lambda message: None})
    found = answered(grid, ["a", "b"])
    assert {name: fetch() for name, fetch in found.items()} == {"a": [], "b": []}


class Consortium(HttpGrid):
    """Flower's Grid over the link, with so many hospitals that have been sent something."""

    def __init__(self, link: SuperLink, hospitals: int) -> None:
        super().__init__(token="test")
        self._client = link  # type: ignore[assignment]
        self._run = Run.create_empty(5)
        self.hospitals = range(1, hospitals + 1)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=number) for number in self.hospitals]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [str(message.metadata.dst_node_id) for message in messages]


def test_questions_do_not_grow_with_the_hospitals_that_work(clock: Clock) -> None:
    asked = {}
    for hospitals in (1, 50):
        link = SuperLink()
        assert list(Exchange(Consortium(link, hospitals)).ask(dict.fromkeys(range(1, hospitals + 1), TASK), 60)) == []
        asked[hospitals] = len(link.questions)
    assert asked[50] == asked[1]
    assert 400 < asked[1] < 500, "each 0.15 s, and more often at first"


def test_each_reply_is_handed_out_once_and_asked_for_no_more(link: SuperLink, clock: Clock) -> None:
    for number in (3, 1, 2):
        clock.after(10.0 * number, partial(link.answer, str(number), float(number)))
    replies = Exchange(Consortium(link, 4)).ask(dict.fromkeys(range(1, 5), TASK), 60)
    assert [(number, values([message])) for number, message in replies] == [(1, [1.0]), (2, [2.0]), (3, [3.0])]
    assert link.questions[-1] == ["4"]
    assert len(link.confirmed) == 3


def test_a_late_reply_is_fetched_and_dropped_at_the_next_question(link: SuperLink, clock: Clock) -> None:
    exchange = Exchange(Consortium(link, 2))
    link.answer("1", 1.0)
    assert [number for number, _ in exchange.ask({1: TASK, 2: TASK}, 5)] == [1]
    link.answer("2", 2.0)
    assert list(exchange.ask({}, 5)) == []
    assert len(link.confirmed) == 2
