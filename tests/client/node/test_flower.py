"""What is changed in Flower's SuperNode: its requests wait for a line that was cut under TLS."""

from __future__ import annotations

import inspect

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection

from client.node.flower import patient

CUT = httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)")
WRONG = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate")


class Line:
    """Gives an error first, and then an answer."""

    def __init__(self, error: httpx.TransportError) -> None:
        self.error, self.asked = error, 0

    def ask(self) -> bytes:
        self.asked += 1
        if self.asked == 1:
            raise self.error
        return b"answer"


@pytest.mark.parametrize("error", [CUT, httpx.ConnectError("Connection refused")], ids=["cut", "down"])
def test_a_request_waits_for_a_line_that_is_down_or_was_cut(error: httpx.TransportError) -> None:
    line = Line(error)
    assert patient(make_simple_http_retry_invoker)().invoke(line.ask) == b"answer"
    assert line.asked == 2


def test_a_server_with_another_certificate_is_not_asked_again() -> None:
    line = Line(WRONG)
    with pytest.raises(httpx.ConnectError):
        patient(make_simple_http_retry_invoker)().invoke(line.ask)
    assert line.asked == 1


def test_flower_by_itself_gives_up_a_line_that_was_cut() -> None:
    with pytest.raises(httpx.ReadError):
        make_simple_http_retry_invoker().invoke(Line(CUT).ask)


def test_the_supernodes_connection_makes_it_by_the_name_that_is_replaced() -> None:
    assert "retry_invoker = make_simple_http_retry_invoker()" in inspect.getsource(fleet_http_connection)
