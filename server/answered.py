"""Which hospitals have answered: one question to the SuperLink for all of them.

Flower's Grid asks and fetches in one call. Who fetches a few replies at a time, so that no more are in memory, would ask once for each
hospital, again and again, while all of them train: that grows with their number, and each question costs the SuperLink 10 ms.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

Fetch = Callable[[], list[Message]]


def answered(grid: Grid, messages: Sequence[str]) -> Mapping[str, Fetch]:
    """What fetches the reply to each of these messages that has one.

    A Grid that can only be asked by fetching has such a call for each message; it gives an empty list where there is no reply yet.
    A reply that is named here is not named again.
    """
    if not messages:
        return {}
    http = sys.modules.get("flwr.superlink.grid.http_grid")  # loaded where there is such a Grid
    if http is not None and isinstance(grid, http.HttpGrid):
        return _asked(grid, messages)
    return {message: partial(_fetch, grid, message) for message in messages}


def _fetch(grid: Grid, message: str) -> list[Message]:
    return list(grid.pull_messages([message]))


def _asked(grid: Any, messages: Sequence[str]) -> dict[str, Fetch]:
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse

    client, found = grid._runtime_client, dict[str, Fetch]()
    reply = client.PullMessages(PullAppMessagesRequest(message_ids=messages))
    for head, tree in zip(reply.messages_list, reply.message_object_trees, strict=True):
        one = PullAppMessagesResponse(messages_list=[head], message_object_trees=[tree])
        told = copy.copy(grid)
        told._client = _Told(client, one)
        found[head.metadata.reply_to_message_id] = partial(_fetch, told, head.metadata.reply_to_message_id)
    return found


class _Told:
    """Flower's client to its Grid, which asks again what has been answered; all else it asks goes on."""

    def __init__(self, client: Any, answer: Any) -> None:
        self._client, self._answer = client, answer

    def PullMessages(self, request: Any) -> Any:  # noqa: N802  # Flower's name
        """The answer that is there."""
        return self._answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
