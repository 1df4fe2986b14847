"""A SuperNode asks often while a run is under way, and seldom where nothing comes."""

from __future__ import annotations

import inspect
import time

from flwr.supernode import start_client_internal

from client.node.pace import IDLE, Pace


class Hours:
    """A clock that goes on by what is slept."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()
        self.pace = Pace(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def idle_until(self, moment: float) -> None:
        while self.now < moment:
            self.pace.sleep(IDLE)


def test_the_waits_grow_where_no_message_comes() -> None:
    hours = Hours()
    hours.idle_until(3600)
    assert hours.slept == sorted(hours.slept)
    assert hours.slept[0] == 0.1
    assert hours.slept[-1] == IDLE
    assert len(hours.slept) < 2000, "most of an idle hour is slept at Flower's own pace"


def test_a_message_makes_them_short_again() -> None:
    hours = Hours()
    hours.idle_until(3600)
    hours.pace.sleep(0.5)
    hours.pace.sleep(IDLE)
    assert hours.slept[-2:] == [0.1, 0.1]


def test_everything_else_is_the_time_modules() -> None:
    assert Pace().time is time.time


def test_flowers_loop_sleeps_as_is_known_here() -> None:
    source = inspect.getsource(start_client_internal)
    assert f"time.sleep({IDLE:.0f})" in source
    assert source.count("time.sleep(") == 3
