"""How often a SuperNode asks the server for messages.

Flower's own loop waits three seconds between two questions, which no option changes: with small updates that is most of a round. It sleeps
here instead for a sixteenth of the time that nothing has come, a tenth of a second at least and Flower's three at most: what waiting adds to a
round is small against the round, and so are the questions, each of which costs the server 10 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

IDLE = 3.0  # seconds that Flower's loop sleeps where no message has come; it sleeps less where it waits for the hospital's answer
_SHARE = 1 / 16  # of the seconds since the last message
_ANSWER = (
    0.1  # seconds between looks for the hospital's own answer, in this process, and the shortest wait for a message
)


class Pace:
    """Stands in for the module `time` in Flower's loop."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._last = clock()

    def sleep(self, seconds: float) -> None:
        """Sleep as long as is right, at most so many seconds."""
        if seconds < IDLE:  # a message is in work
            self._last = self._clock()
            self._sleep(min(seconds, _ANSWER))
            return
        idle = self._clock() - self._last
        self._sleep(min(max(_SHARE * idle, _ANSWER), seconds))

    def __getattr__(self, name: str) -> Any:
        """Everything else is the module's."""
        return getattr(time, name)
