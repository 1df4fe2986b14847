"""The gate before Flower's SuperLink, which serves hospitals, the operator and its own programs at one port.

Hospitals may reach what is theirs, each request signed by an enrolled key; all else - starting runs, enrolling keys, taking over the
server's own tasks - is for this machine alone. To anybody else it does not exist.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cxrbase_model.hello import HELLO_PATH, Hello, hello_to_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_REQUEST = 32 << 20  # bytes; Flower sends arrays in pieces of 5 MiB

_HOSPITALS = "/v1/fleet/"
_FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


class Gate:
    """An ASGI application around another one; `hello` answers the hospitals' first question from a request's headers."""

    def __init__(self, app: App, hello: Callable[[dict[str, str]], Hello]) -> None:
        self._app, self._hello = app, hello

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, answer it, or turn it away."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            return
        elif scope["path"] == HELLO_PATH and scope["method"] == "GET":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            await _answer(send, 200, hello_to_json(self._hello(headers)))
        elif scope["path"].startswith(_HOSPITALS):
            await self._limited(scope, receive, send)
        elif is_local(scope):
            await self._app(scope, receive, send)
        else:
            await _answer(send, 404, {"detail": "Not Found"})

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on whose body is not larger than what hospitals send; it is read before anybody looks at its signature."""
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > LARGEST_REQUEST:
            await _answer(send, 413, {"detail": f"requests have at most {LARGEST_REQUEST} bytes"})
            return
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= LARGEST_REQUEST else {"type": "http.disconnect"}

        await self._app(scope, counted, send)


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine itself, and not through a proxy on it."""
    if scope.get("client") is None or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    try:
        peer = ipaddress.ip_address(scope["client"][0])
        own = ipaddress.ip_address(scope["server"][0])
    except (ValueError, KeyError, TypeError):
        return False
    return peer.is_loopback or peer == own


async def _answer(send: Send, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
