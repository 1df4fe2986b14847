"""What the hospital's processes take from Flower beyond its public names, all in one place.

Flower's SuperNode speaks to the server. At its Runtime API, an HTTP port of this machine alone, other processes fetch tasks and hand
back answers; this module is their end of it. The calls are those of Flower's own `flower-superexec` and `flwr-clientapp`, without what
these do besides: installing the code that the server sent, and sending the texts of exceptions.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.node.pace import Pace

RELEASE = "1.41"

if not version("flwr").startswith(
    f"{RELEASE}."
):  # its inner names may mean something else there, so nothing is started
    sys.exit(f"cxrbase-client: expected flwr {RELEASE}, found {version('flwr')}; install the release's own versions")
try:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.app.message import remove_content_from_message
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.proto.message_pb2 import Message as ProtoMessage
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.retry import RetryInvoker, exponential, make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output
except ImportError as error:
    sys.exit(f"cxrbase-client: flwr {version('flwr')} lacks a part ({error.name}); install the release's own versions")

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_PATIENCE = 60.0  # seconds that an answer waits for a SuperNode that does not reply
_NUMBER = struct.Struct("<Q")
_PAUSES = {"initial_backoff": 0.1, "backoff_cap": 0.5, "max_tries_per_object": None}


@dataclass(frozen=True)
class Given:
    """A task that the SuperNode has given away: the server's message, its context, and the bundle that the server wants run."""

    message: Message
    context: Context
    bundle: bytes

    @property
    def stub(self) -> bytes:
        """What another process needs to say that there will be no answer (`Exchange.give_up`): the message without its content."""
        bare: bytes = message_to_proto(remove_content_from_message(self.message)).SerializeToString()
        return _NUMBER.pack(TaskIdentity.task_id or 0) + bare


@dataclass(frozen=True)
class Claim:
    """A task that waits to be fetched with its token; `agent` where it is an AgentApp's, which no hospital runs."""

    token: str
    agent: bool


class Tasks:
    """The executor's end: which task is next? httpx.HTTPError where the SuperNode does not answer."""

    def __init__(self, address: str, secret: bytes) -> None:
        proof = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
        self._client = _client(address, "SuperExec", proof)

    def next(self) -> Claim | None:
        """Claim the oldest task, None where none waits.

        An AgentApp's is claimed to be refused: left waiting, it would keep the SuperNode from taking any other.
        """
        kinds = [TaskType.CLIENT_APP, TaskType.AGENT_APP]
        found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=kinds))
        if not found.HasField("task") or not found.token:
            return None
        return Claim(found.token, found.task.type != TaskType.CLIENT_APP)


class Exchange:
    """The runner's end: fetch one task with its token and hand back one answer."""

    def __init__(self, address: str, token: str) -> None:
        proof, retry = (
            RuntimeTokenHttpInterceptor(token),
            RetryInvoker(exponential, httpx.TransportError, None, _PATIENCE),
        )
        look_often()
        self._client = _client(address, "flwr-clientapp", proof, retry)
        self._pulse = _client(address, "flwr-clientapp", proof)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Tell the SuperNode meanwhile that the task is being worked on, else it is given up after a minute; then hang up.

        A SuperNode that has gone, or has forgotten the task, does not end the work: the answer is kept for when the task comes again.
        """
        sender = HeartbeatSender(self._beat)
        sender.start()
        try:
            yield
        finally:
            if sender.is_running:
                sender.stop()
            self._client.close()
            self._pulse.close()

    def fetch(self) -> Given:
        """The task, with its message."""
        message, context, _, fab = pull_task_input(self._client)
        return Given(message, context, fab.content)

    def hand_back(self, answer: Message, given: Given) -> None:
        """Send the answer; httpx.HTTPError where the SuperNode has gone."""
        push_message(self._client, answer, given.context)
        status = SubStatus.FAILED if answer.has_error() else SubStatus.COMPLETED
        push_task_output(client=self._client, context=given.context, sub_status=status, details="")

    def give_up(self, stub: bytes) -> None:
        """Say for a process that has died that there is no answer, then hang up; httpx.HTTPError where the SuperNode has gone.

        Without that, Flower notices after a minute without a sign of life.
        """
        request = message_from_proto(ProtoMessage.FromString(stub[_NUMBER.size :]))
        run, node = request.metadata.run_id, request.metadata.dst_node_id
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _NUMBER.unpack_from(stub)[0], run, node
        context = Context(run_id=run, node_id=node, node_config={}, state=RecordDict(), run_config={})
        try:
            push_message(self._client, failure(request), context)
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED))
        finally:
            self._client.close()
            self._pulse.close()

    def _beat(self) -> bool:
        try:
            self._pulse.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            return False
        return True


def failure(request: Message) -> Message:
    """The answer that says that there is none, always in the same words."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "the hospital has no answer"), reply_to=request)


def sign_off(node: int, superlink: str, authority: Path, key_file: Path) -> None:
    """Tell the server that a SuperNode has ended that could not say so itself; else its key is held for up to a minute.

    That the server cannot be reached, or knows better, is left to the next SuperNode to find out.
    """
    key = load_ssh_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # `client.membership` has made it
    interceptors = (RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key()))
    with (
        contextlib.suppress(httpx.HTTPError),
        FleetHttpClient.from_server_address(superlink, False, authority.read_bytes(), interceptors) as client,
    ):
        client.DeactivateNode(DeactivateNodeRequest(node_id=node))


def run_supernode(arguments: list[str]) -> None:
    """Be Flower's SuperNode with this command line, at a pace of our own; returns by SystemExit."""
    vars(start_client_internal)["time"] = Pace()  # its loop's waits have no option
    vars(fleet_http_connection)["make_simple_http_retry_invoker"] = patient(make_simple_http_retry_invoker)
    look_often()
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def patient(make: Callable[[], RetryInvoker]) -> Callable[[], RetryInvoker]:
    """Flower's maker of what repeats requests, whose requests wait for a line that was cut under TLS, too.

    Flower waits for a line that is down, but takes the sudden end of a TLS connection for a wrong server: it gives up, and all pieces that
    had come, or gone, are sent again. Who answers is checked for each connection, so another try shows nobody anything; a certificate that
    is refused still ends it.
    """

    def made() -> RetryInvoker:
        invoker = make()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not _is_cut(error) and gives_up is not None and gives_up(error)
        return invoker

    return made


def _is_cut(error: Exception) -> bool:
    told = str(error).lower()
    return isinstance(error, httpx.TransportError) and "eof occurred" in told and "certificate" not in told


def look_often() -> None:
    """Look each half second for a piece of a message whose sender is still at it.

    Flower looks after 1, 2, 4, 8 seconds and then each 10, so that a download of 3 seconds is waited for for 7.
    """
    for pull in (pull_objects, pull_and_inflate_object_from_tree):
        (pull.__kwdefaults__ or {}).update(_PAUSES)


def _client(
    address: str, component: str, proof: ProtobufClientInterceptor, retry: RetryInvoker | None = None
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # a port of this machine alone
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), proof],
        retry_invoker=retry,
    )
