"""From elsewhere only what is the hospitals' own can be reached; pure ASGI first, then Flower's real application behind the gate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from cxrbase_model.hello import HELLO_PATH, Hello, hello_from_json
from server.gate import LARGEST_REQUEST, Gate

HERE, ELSEWHERE = "192.0.2.1", "203.0.113.5"
HELLO = Hello(1, "northlight", "0.1.0", 2, "", "", 1.7e9)
PRIVATE = [
    "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/responses", "/docs",
    "/openapi.json", "/health", "/", "", "/v1", "/v1/fleet", "/v1/fleetx/a", "/v1/cxrbase/other", "/V1/FLEET/pull-messages",
]  # fmt: skip


class Inner:
    """The application behind the gate: reads the whole body and remembers what it was given."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.other: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            self.other.append(scope["type"])
            return
        self.paths.append(scope["path"])
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            if not message.get("more_body", False):
                self.bodies.append(body)
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inner"})


def ask(
    inner: Inner,
    path: str,
    peer: str | None = ELSEWHERE,
    *,
    method: str = "POST",
    headers: Iterable[tuple[str, str]] = (),
    body: Iterable[bytes] = (b"",),
    server: Any = (HERE, 9443),
    kind: str = "http",
) -> tuple[int | None, bytes]:
    """Send one request through the gate: the status and body of its answer."""
    scope = {
        "type": kind, "method": method, "path": path, "server": server, "client": None if peer is None else (peer, 50000),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }  # fmt: skip
    pieces = list(body)
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gate(inner, lambda headers: HELLO)(scope, receive, send))
    if not sent:
        return None, b""
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("path", PRIVATE)
def test_what_is_not_the_hospitals_does_not_exist_for_them(path: str) -> None:
    inner = Inner()
    for method in ("GET", "POST", "OPTIONS"):
        status, body = ask(inner, path, method=method)
        assert (status, json.loads(body)) == (404, {"detail": "Not Found"})
    assert inner.paths == []


def test_hospitals_reach_what_is_theirs() -> None:
    inner = Inner()
    assert ask(inner, "/v1/fleet/pull-messages", body=[b"one", b"two"]) == (200, b"inner")
    assert (inner.paths, inner.bodies) == (["/v1/fleet/pull-messages"], [b"onetwo"])


def test_everybody_is_told_hello_by_the_gate_itself() -> None:
    inner = Inner()
    status, body = ask(inner, HELLO_PATH, method="GET")
    assert (status, hello_from_json(json.loads(body))) == (200, HELLO)
    assert ask(inner, HELLO_PATH, method="POST")[0] == 404
    assert ask(inner, HELLO_PATH + "/", method="GET")[0] == 404
    assert inner.paths == []


def test_hello_is_given_the_headers_of_the_request() -> None:
    seen: list[dict[str, str]] = []

    def look(headers: dict[str, str]) -> Hello:
        seen.append(headers)
        return HELLO

    async def receive() -> Any:
        raise AssertionError("nobody reads a body here")

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": HELLO_PATH, "headers": [(b"cxrbase-key", b"a\xe9")]}
    asyncio.run(Gate(Inner(), look)(scope, receive, send))
    assert seen == [{"cxrbase-key": "aé"}]


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", HERE])
def test_this_machine_reaches_everything(peer: str) -> None:
    inner = Inner()
    for path in PRIVATE:
        assert ask(inner, path, peer) == (200, b"inner")
    assert inner.paths == PRIVATE


@pytest.mark.parametrize(
    ("peer", "own", "is_local"),
    [
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:0db8:0::1", "2001:db8::1", True),
        ("2001:db8::2", "2001:db8::1", False),
        ("fe80::1", "2001:db8::1", False),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", True),
        ("0.0.0.0", HERE, False),
        ("::", "2001:db8::1", False),
        ("localhost", HERE, False),
        ("", HERE, False),
        (None, HERE, False),
        ("192.0.2.10", HERE, False),
        ("10.0.0.1", HERE, False),
    ],
)
def test_addresses_are_compared_as_addresses(peer: str | None, own: str, is_local: bool) -> None:
    inner = Inner()
    assert ask(inner, "/v1/control/start-run", peer, server=(own, 9443))[0] == (200 if is_local else 404)
    assert len(inner.paths) == is_local


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
@pytest.mark.parametrize("value", [ELSEWHERE, "127.0.0.1", ""])
def test_what_comes_through_a_proxy_on_this_machine_comes_from_elsewhere(name: str, value: str) -> None:
    inner = Inner()
    assert ask(inner, "/v1/control/start-run", "127.0.0.1", headers=[(name, value)])[0] == 404
    assert ask(inner, "/v1/fleet/pull-messages", "127.0.0.1", headers=[(name, value)])[0] == 200
    assert inner.paths == ["/v1/fleet/pull-messages"]


def test_where_the_own_address_is_not_known_nothing_is_local() -> None:
    for server in (None, ("/run/socket", None), ("cxr.example.org", 9443)):
        assert ask(Inner(), "/v1/control/start-run", ELSEWHERE, server=server)[0] == 404


@pytest.mark.parametrize("claimed", [str(LARGEST_REQUEST + 1), "-1", "1e3", "", "0x10", "1, 1"])
def test_a_request_that_claims_too_much_or_nonsense_is_not_passed_on(claimed: str) -> None:
    inner = Inner()
    assert ask(inner, "/v1/fleet/push-object", headers=[("Content-Length", claimed)])[0] == 413
    assert inner.paths == []


def test_the_largest_request_passes_and_one_byte_more_is_never_whole() -> None:
    inner, half = Inner(), bytes(LARGEST_REQUEST // 2)
    assert (
        ask(inner, "/v1/fleet/push-object", headers=[("Content-Length", str(LARGEST_REQUEST))], body=[half, half])[0]
        == 200
    )
    assert [len(body) for body in inner.bodies] == [LARGEST_REQUEST]
    ask(inner, "/v1/fleet/push-object", body=[half, half, b"x"])
    assert len(inner.bodies) == 1, "the application was told that the sender is gone"


def test_no_websocket_is_opened_and_the_start_and_end_of_the_server_are_passed_on() -> None:
    inner = Inner()
    for path in ("/v1/fleet/pull-messages", "/v1/control/start-run"):
        for peer in (ELSEWHERE, "127.0.0.1"):
            status, _ = ask(inner, path, peer, kind="websocket")
            assert status is None
    assert inner.other == []
    ask(inner, "", kind="lifespan")
    assert inner.other == ["lifespan"]


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Flower's own application with node authentication, behind the gate as `server.superlink` puts it there."""
    from server.consortium import Consortium
    from server.superlink import _gated

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower")))
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        from flwr.superlink.main import create_app

        consortium = Consortium(
            schema=1, name="northlight", address="localhost", hospitals=("riverside",), home=Path("nowhere")
        )
        app = _gated(create_app, lambda: consortium)()
    app.state.enable_supernode_auth = True
    return app


def post(app: Any, path: str, message: Any, peer: str = ELSEWHERE, **headers: str) -> httpx.Response:
    """Flower's answer to a request; `path` stands in the request as it is written here."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(peer, 50000), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"https://{HERE}:9443") as client:
            content = message if isinstance(message, AsyncIterator) else message.SerializeToString()
            return await client.post(path, content=content, headers={"content-type": "application/protobuf"} | headers)

    return asyncio.run(asked())


REQUESTS = [
    ("/v1/control/start-run", StartRunRequest()),
    ("/v1/control/register-node", RegisterNodeRequest(public_key=b"key", name="riverside")),
    ("/v1/control/list-nodes", ListNodesRequest()),
    ("/v1/runtime/acquire-task", AcquireTaskRequest()),
]


@pytest.mark.parametrize(("path", "message"), REQUESTS)
def test_flowers_operator_requests_work_here_and_do_not_exist_elsewhere(flower: Any, path: str, message: Any) -> None:
    here, elsewhere = post(flower, path, message, "127.0.0.1"), post(flower, path, message)
    assert here.status_code not in (404, 405), "the request is one that Flower knows"
    assert (elsewhere.status_code, elsewhere.json()) == (404, {"detail": "Not Found"})
    forged = {"host": "127.0.0.1:9443", "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"}
    assert post(flower, path, message, **forged).status_code == 404


@pytest.mark.parametrize("message", [PullMessagesRequest(), ActivateNodeRequest(public_key=b"key")])
@pytest.mark.parametrize("host", [None, "a/b?", "a?", "a#", "127.0.0.1:9443", "a/v1/control", ""])
def test_flower_asks_hospitals_for_their_signature_whatever_host_they_name(
    flower: Any, message: Any, host: str | None
) -> None:
    path = "/v1/fleet/pull-messages" if isinstance(message, PullMessagesRequest) else "/v1/fleet/activate-node"
    answer = post(flower, path, message, **({} if host is None else {"host": host}))
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid SuperNode authentication"})


@pytest.mark.parametrize("path", [
    "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet/%2e%2e%2fcontrol%2fstart-run", "/v1/fleet//../control/start-run", "//v1/control/start-run", "/v1//control/start-run",
    "/%76%31/control/start-run", "/v1/control%2fstart-run", "/v1/fleet/;/../../v1/control/start-run", "/v1/fleet/%00/../start-run",
    "/v1/fleet/..\\control\\start-run", "/v1/fleet/?/../control/start-run", "/v1/fleet/%252e%252e/control/start-run",
])  # fmt: skip
def test_no_spelling_of_a_path_leads_from_the_hospitals_to_the_operators(flower: Any, path: str) -> None:
    scope_path = httpx.URL(f"https://{HERE}").copy_with(raw_path=path.encode()).path  # as every server decodes it

    async def asked() -> int:
        status = 0

        async def receive() -> Any:
            return {"type": "http.request", "body": StartRunRequest().SerializeToString(), "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "https",
            "path": scope_path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "server": (HERE, 9443),
            "client": (ELSEWHERE, 50000), "headers": [(b"content-type", b"application/protobuf"), (b"host", b"a")],
        }  # fmt: skip
        await flower(scope, receive, send)
        return status

    assert asyncio.run(asked()) == 404


def test_flower_never_gets_the_whole_of_a_request_without_a_length_that_is_too_large(flower: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield bytes(1 << 20)

    assert post(flower, "/v1/fleet/push-object", pieces()).status_code >= 400
