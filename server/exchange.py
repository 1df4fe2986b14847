"""Asking hospitals and taking their replies one at a time as they come, over Flower's Grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from cxrbase_model.messages import Task, task_to_message

_FIRST_PAUSE, _LONGEST_PAUSE = (
    0.01,
    0.15,
)  # seconds; a reply is picked up within 0.2 s, an idle wait costs next to nothing


class Stopped(Exception):
    """The operator asked the run to stop; everything up to the last committed round is on disk."""


class Exchange:
    """The server's side of the wire. `should_stop` is asked between polls; true ends the wait with Stopped."""

    def __init__(self, grid: Grid, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._grid = grid
        self._should_stop = should_stop

    def nodes(self) -> list[int]:
        """The node ids that are connected now."""
        return sorted(self._grid.get_node_ids())

    def pauses(self, deadline: float) -> Iterator[None]:
        """Yield until `deadline` seconds have passed, pausing longer and longer in between; Stopped when asked to stop."""
        end, pause = time.monotonic() + deadline, _FIRST_PAUSE
        while True:
            yield
            if self._should_stop():
                raise Stopped
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def ask(self, tasks: Mapping[int, Task], deadline: float) -> Iterator[tuple[int, Message]]:
        """Send each node its task and yield (node id, reply) as they come, until all have or the deadline is over.

        Replies are pulled one at a time, so no more than one is in memory; one that comes late is never pulled.
        """
        waiting: dict[str, int] = {}
        for node_id, task in tasks.items():
            for message_id in self._grid.push_messages([task_to_message(task, node_id, ttl=deadline + 60)]):
                waiting[message_id] = node_id
        for _ in self.pauses(deadline):
            answered = []
            for message_id, node_id in waiting.items():
                for message in self._grid.pull_messages([message_id]):
                    answered.append(message_id)
                    yield node_id, message
            for message_id in answered:
                del waiting[message_id]
            if not waiting:
                return
