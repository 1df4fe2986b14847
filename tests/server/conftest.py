"""What the server's tests share: a clock that they move, so that hours of waiting take no time, and one thread for small numbers."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch


class Clock:
    """Stands in for the module `time`: sleeping moves it on at once, and does what was planned for the moments it passes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self._plans and self._plans[0][0] <= end:
            self.now, _, action = heapq.heappop(self._plans)
            action()
        self.now = max(self.now, end)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something once that many seconds have passed."""
        heapq.heappush(self._plans, (self.now + seconds, next(self._order), action))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Everything of the server that waits does so by this clock."""
    made = Clock()
    for module in ("exchange", "rounds", "newcomers", "records", "live"):
        monkeypatch.setattr(f"server.{module}.time", made)
    return made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models here are so small that threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
