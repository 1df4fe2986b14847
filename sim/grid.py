"""An in-process Grid: each node is a function from a message to its reply, called when the reply is pulled.

For tests and studies of the server alone; a simulation of hospitals runs over Flower's own runtime (`sim.runner`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

Node = Callable[[Message], Message | None]  # None: no reply in this poll, asked again in the next


class LocalGrid(Grid):
    """A Grid over functions. `nodes` may be changed between rounds: hospitals join and leave."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes = dict(nodes)
        self.pushed = 0
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)

    @property
    def run(self) -> Any:
        """There is no Flower run behind this grid."""
        raise NotImplementedError("a LocalGrid belongs to no Flower run")

    def set_run(self, run: Any) -> None:
        """There is no Flower run behind this grid."""
        raise NotImplementedError("a LocalGrid belongs to no Flower run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Deprecated in Flower; messages are made by `cxrbase_model.messages`."""
        raise NotImplementedError("make messages with cxrbase_model.messages")

    def get_node_ids(self) -> Iterable[int]:
        """The ids of the nodes that are there now."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep each message until its reply is pulled; returns one id for each."""
        ids = []
        for message in messages:
            identity = f"message-{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = identity  # Flower sets it when a message is sent
            self._waiting[identity] = message
            ids.append(identity)
            self.pushed += 1
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the nodes answer; a node that is gone never does."""
        replies = []
        for identity in list(message_ids):
            message = self._waiting.get(identity)
            node = self.nodes.get(message.metadata.dst_node_id) if message is not None else None
            reply = node(message) if node is not None and message is not None else None
            if reply is not None:
                del self._waiting[identity]
                replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send and pull once; `timeout` is not waited for, since nodes answer at once."""
        return self.pull_messages(self.push_messages(messages))
