"""A SuperNode's real Runtime API in this process, to which tests give tasks and from which they take what would be sent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from cxrbase_model.bundle import bundle_digest, pack_bundle, release_files
from cxrbase_model.messages import Task, task_to_message

Found = TypeVar("Found")

WAIT = 180.0  # seconds for a process to do or end; reached only where something is wrong
SECRET = b"between the SuperNode and its executor"
NODE, RUN = 7, 11


def wait_for(look: Callable[[], Found | None]) -> Found:
    """What `look` gives once it is true; fails where it does not become so."""
    deadline = time.monotonic() + WAIT
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class SuperNode:
    """The node's state and the address of its API."""

    state: NodeState
    address: str
    config: dict[str, str]

    def offer(self, task: Task, bundle: bytes, kind: TaskType = TaskType.CLIENT_APP) -> int:
        """Put a task into the state as the SuperNode does with one from the server; its number."""
        store = self.state.object_store
        message = task_to_message(task, NODE, ttl=3600)
        message.metadata.__dict__.update(_run_id=RUN, _src_node_id=1)
        context = Context(run_id=RUN, node_id=NODE, node_config=dict(self.config), state=RecordDict(), run_config={})
        self.state.set_run_series_context(0, context)
        digest = bundle_digest(bundle)
        self.state.store_run(replace(Run.create_empty(RUN), fab_id="cxrbase/cxrbase", fab_version="1", fab_hash=digest))
        self.state.store_fab(Fab(digest, bundle, {}))
        number = self.state.create_task(task_type=kind, run_id=RUN, fab_hash=digest)
        assert number is not None
        _insert_message(message, self.state, store)
        return number

    def claim(self, number: int) -> str:
        """The token of a task, as the executor gets it."""
        token = self.state.claim_task(number)
        assert token is not None
        return token

    def answers(self) -> list[tuple[Message, bytes]]:
        """What the SuperNode would send: each message, whole, and every byte that belongs to it."""
        return [self._whole(message) for message in self.state.get_messages_legacy(is_reply=True)]

    def wait_for_answer(self) -> tuple[Message, bytes]:
        """The next answer; fails where none comes."""
        return wait_for(self.answers)[0]

    def _whole(self, message: Message) -> tuple[Message, bytes]:
        store = self.state.object_store
        tree = store.get_object_tree(message.metadata.message_id)
        objects = [each.object_id for each in iterate_object_tree(tree)]
        wait_for(lambda: all(store.get(each) for each in objects))  # the message is there before its content
        contents = {each: bytes(store.get(each) or b"") for each in objects}
        whole = inflate_object_from_contents(message.metadata.message_id, contents)
        assert isinstance(whole, Message)
        return whole, b"".join(contents.values()) + repr(message.metadata).encode() + str(vars(whole)).encode()


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    """A SuperNode without a server."""
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the API did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    state = factory.state()
    state.set_node_id(NODE)
    yield SuperNode(state, f"127.0.0.1:{port}", {})
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def changed_bundle() -> Callable[..., bytes]:
    """The installed release's bundle with files added or replaced: `changed_bundle({"path": b"content"})`."""
    return lambda files: pack_bundle(release_files() | files)


@pytest.fixture
def evil_file(tmp_path: Path) -> Path:
    """A file that code of a bundle would write if anything of it ran."""
    return tmp_path / "evil"
