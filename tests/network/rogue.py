"""A hospital that does not play by the rules: it speaks to the server with an enrolled key and sends what it likes.

Made of Flower's own SuperNode parts, since the point is what gets past the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from client.app import answer
from client.membership import Membership
from client.site import Site
from cxrbase_model.messages import Reply, Task, reply_to_message, task_from_message

Replies = Callable[[Task, Reply], list[Reply]]  # what is sent for a task, given the honest reply


class Rogue:
    """Answers tasks until `rounds` of them were answered; each with whatever `replies` makes of the honest reply."""

    def __init__(self, site: Site, connection: tuple[Any, ...]) -> None:
        self._site = site
        _, self._receive, self._send, _, _, self._pull, self._push, self._confirm = connection

    def serve(self, rounds: int, replies: Replies) -> None:
        """Answer this many tasks."""
        answered = 0
        while answered < rounds:
            received = self._receive()
            if received is None:
                time.sleep(0.2)
                continue
            message = self._content(*received)
            task = task_from_message(message)
            for reply in replies(task, answer(task, self._site)):
                self._push_reply(reply_to_message(reply, message))
            answered += 1

    def _content(self, message: Message, tree: Any) -> Message:
        run = message.metadata.run_id
        numbers = [each.object_id for each in iterate_object_tree(tree)]
        contents = pull_objects(numbers, pull_object_fn=lambda number: self._pull(run, number))
        whole = inflate_object_from_contents(message.metadata.message_id, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = message.metadata.message_id
        self._confirm(run, message.metadata.message_id)
        return whole

    def _push_reply(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        parts = get_all_nested_objects(reply)
        wanted, session = self._send(reply, get_object_tree(reply), 0.0)
        for number, part in parts.items():
            if number in wanted:
                self._push(reply.metadata.run_id, session, number, part.deflate())


@contextmanager
def rogue(site: Site, member: Membership) -> Iterator[Rogue]:
    """A rogue with the key of a hospital, connected."""
    key = load_ssh_private_key(member.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    address = f"{member.kit.address}:{member.kit.port}"
    with http_request_response(
        address, False, member.authority.read_bytes(), (key, key.public_key()), max_retries=20
    ) as connection:
        yield Rogue(site, connection)
