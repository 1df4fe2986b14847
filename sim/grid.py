"""An in-process Grid: each node is a function from a message to its reply, called when the reply is pulled.

For tests and studies of the server alone; a simulation of hospitals runs over Flower's own runtime (`sim.runner`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

Node = Callable[[Message], Message | None]  # None: no reply in this poll, asked again in the next


class LocalGrid(Grid):
    """A Grid over functions. `nodes` may be changed between rounds: hospitals join and leave.

    names: the names that keys are enrolled under, for nodes that have one. started: when a node's process signed on; another value
    is another process. absent: nodes that are not there now; they answer once they are back.
    """

    def __init__(self, nodes: Mapping[int, Node], names: Mapping[int, str] | None = None) -> None:
        self.nodes = dict(nodes)
        self.names = dict(names or {})
        self.started: dict[int, str] = {}
        self.absent: set[int] = set()
        self.pushed = 0
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)
        self._one_at_a_time = threading.Lock()  # torch's global generator is one for all nodes of a process

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
        return [number for number in self.nodes if number not in self.absent]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are there now, with their names and when they signed on."""
        return [
            NodeInfo(node_id=number, name=self.names.get(number, ""), last_activated_at=self.started.get(number, ""))
            for number in self.get_node_ids()
        ]

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
            with self._one_at_a_time:
                message = self._waiting.get(identity)
                reply = self._answer(message) if message is not None else None
                if reply is not None:
                    del self._waiting[identity]
                    replies.append(reply)
        return replies

    @property
    def waiting(self) -> int:
        """How many messages have been sent whose reply was not taken."""
        return len(self._waiting)

    def _answer(self, message: Message) -> Message | None:
        number = message.metadata.dst_node_id
        return None if number in self.absent or number not in self.nodes else self.nodes[number](message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send and pull once; `timeout` is not waited for, since nodes answer at once."""
        return self.pull_messages(self.push_messages(messages))
