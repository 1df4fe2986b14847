"""What is changed in Flower's SuperNode: a download goes on after its line was cut."""

from __future__ import annotations

import inspect
from collections import Counter

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
from flwr.supercore.retry.http_retry import make_simple_http_retry_invoker
from flwr.supernode import start_client_internal

from client.node.flower import going_on

_CUT = httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)")


class Cut:
    """A server behind a line that is cut once in each piece but the first."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def piece(self, name: str) -> bytes:
        self.asked[name] += 1
        if name != "0" and self.asked[name] == 1:
            raise _CUT
        return name.encode()

    def through_flower(self, name: str) -> bytes:
        found: bytes = make_simple_http_retry_invoker().invoke(self.piece, name)
        return found


def test_a_cut_line_costs_no_piece_that_had_come() -> None:
    server, names = Cut(), ["0", "1", "2"]
    found = going_on(pull_objects)(names, server.through_flower, initial_backoff=0.01, backoff_cap=0.01)
    assert found == {name: name.encode() for name in names}
    assert server.asked == {"0": 1, "1": 2, "2": 2}


def test_flower_by_itself_gives_up() -> None:
    with pytest.raises(httpx.ReadError):
        pull_objects(["0", "1"], Cut().through_flower)


def test_a_piece_that_the_server_does_not_have_is_not_asked_for_again() -> None:
    def none(name: str) -> bytes:
        raise ObjectPullError(name, "the object could not be found.")

    with pytest.raises(ObjectPullError):
        going_on(pull_objects)(["0"], none)


def test_flowers_loop_pulls_by_the_name_that_is_replaced() -> None:
    assert "obj_contents = pull_objects(" in inspect.getsource(start_client_internal)
