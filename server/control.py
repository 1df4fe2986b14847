"""What the operator tells Flower's SuperLink: which keys are enrolled, and to run the rounds.

Flower offers this as the command `flwr` and as a client class; the class is used here, since the command would pack the bundle
anew with whatever zip library is there, so that its digest would not be the one that hospitals compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from cxrbase_model.bundle import bundle_digest
from server.authority import Authority
from server.consortium import Consortium


class ControlError(RuntimeError):
    """The SuperLink could not be asked, or did not do what it was asked; the message says what."""


@dataclass(frozen=True)
class Key:
    """An enrolled key as the SuperLink knows it; `node` is the number it gave it."""

    name: str
    node: int


class Control:
    """Requests to a running SuperLink; `control` opens one. ControlError where one fails."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def keys(self) -> dict[bytes, Key]:
        """The keys that are let in, in Flower's form."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {info.public_key: Key(info.name, info.node_id) for info in nodes if info.status != "unregistered"}

    def let_in(self, name: str, key: bytes) -> None:
        """Let a hospital's key in; a key that was revoked once cannot come back."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def keep_out(self, node: int) -> None:
        """Do not let the key of a node in any more; a connected one is turned away at its next request."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start(self, bundle: bytes, settings: dict[str, Any]) -> int:
        """Run the rounds with this bundle; gives Flower's number of the run."""
        fab = Fab(hash_str=bundle_digest(bundle), content=bundle)
        reply = self._client.StartRun(StartRunRequest(fab=fab, override_config=user_config_to_proto(settings)))
        if not reply.HasField("run_id"):
            raise ControlError("the SuperLink has not started the run; see its log")
        return int(reply.run_id)


@contextmanager
def control(consortium: Consortium) -> Iterator[Control]:
    """A connection to the SuperLink of this machine; what goes wrong with it is a ControlError."""
    try:
        with ControlHttpClient.from_server_address(
            server_address=consortium.here,
            insecure=False,
            root_certificates=Authority(consortium.home).certificate_file.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="cxrbase-server")],
        ) as client:
            yield Control(client)
    except httpx.HTTPStatusError as error:
        raise ControlError(f"the SuperLink has refused: {error.response.text[:300]}") from None
    except httpx.HTTPError as error:
        raise ControlError(f"the SuperLink does not answer: {error}") from None


def flower_key(openssh: bytes) -> bytes:
    """An enrolled public key in the form that Flower keeps."""
    key = load_ssh_public_key(openssh)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # enrolment takes no other
    return bytes(public_key_to_bytes(key))
