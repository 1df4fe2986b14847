"""Each way in which a server can be out of reach or not the right one has its own name and its remedy."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.connection import Probe, Problem, probe
from tests.client.serving import Authority, hello, joined, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def found(authority: Authority, folder: Path, port: int, address: str = "localhost") -> Probe:
    return probe(joined(folder, authority.pem, port, address), timeout=2.0)


def met(authority: Authority, folder: Path, certificate: Path | None, answer: object = None, **how: Any) -> Probe:
    """What a hospital finds that meets such a server."""
    with serving(certificate, hello() if answer is None else answer, **how) as port:
        return found(authority, folder, port)


def assert_only(result: Probe, problem: Problem, text: str, *, fatal: bool = True) -> None:
    (finding,) = result.findings
    assert (finding.problem, finding.fatal) == (problem, fatal)
    assert text in finding.text
    assert finding.remedy


def test_the_right_server_is_found_right(authority: Authority, tmp_path: Path) -> None:
    result = met(authority, tmp_path, authority.issue())
    assert result.findings == ()
    assert result.hello is not None
    assert (result.hello.consortium, result.hello.hospital) == ("northlight", "riverside")
    assert result.certificate_days == pytest.approx(90, abs=1)
    assert result.clock_ahead == pytest.approx(0, abs=2)


def test_a_name_that_nobody_knows(authority: Authority, tmp_path: Path) -> None:
    result = found(authority, tmp_path, 9, "server.invalid")
    assert_only(result, Problem.DNS, "the name server.invalid is not known")


def test_a_port_where_nobody_listens(authority: Authority, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    assert_only(found(authority, tmp_path, port), Problem.UNREACHABLE, "refuses the connection")


@contextmanager
def silent(*, ends: bool) -> Iterator[int]:
    """A port where connections are taken and nothing is said."""
    lines: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def take() -> None:
            line, _ = server.accept()
            lines.append(line)
            if ends:
                line.close()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)
        for line in lines:
            line.close()


@pytest.mark.parametrize("ends", [False, True])
def test_a_server_that_says_nothing(authority: Authority, tmp_path: Path, ends: bool) -> None:
    with silent(ends=ends) as port:
        result = probe(joined(tmp_path, authority.pem, port, "127.0.0.1"), timeout=0.5)
    assert_only(result, Problem.TLS, "ends the TLS handshake")


def test_a_server_in_plain_text(authority: Authority, tmp_path: Path) -> None:
    assert_only(met(authority, tmp_path, None), Problem.PLAINTEXT, "speaks no TLS")


def test_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    impostor = Authority(tmp_path / "impostor")
    result = met(authority, tmp_path, impostor.issue())
    assert_only(result, Problem.AUTHORITY, "is not of the consortium's authority")


def test_a_certificate_that_has_expired(authority: Authority, tmp_path: Path) -> None:
    result = met(authority, tmp_path, authority.issue(start=-30, end=-1))
    assert_only(result, Problem.EXPIRED, "has expired")
    assert time.strftime("%Y") in result.findings[0].remedy


def test_a_certificate_of_tomorrow(authority: Authority, tmp_path: Path) -> None:
    assert_only(met(authority, tmp_path, authority.issue(start=1)), Problem.CLOCK, "is not valid yet")


def test_a_certificate_for_another_name(authority: Authority, tmp_path: Path) -> None:
    assert_only(met(authority, tmp_path, authority.issue("other.example")), Problem.NAME, "is for another name")


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"{", 200), (b"[]", 200), ({"schema": 99, "time": None}, 200), (hello(), 404), (b"x" * 200_000, 200)],
)
def test_a_server_that_is_none_of_ours(authority: Authority, tmp_path: Path, answer: object, status: int) -> None:
    result = met(authority, tmp_path, authority.issue(), answer, status=status)
    assert_only(result, Problem.HELLO, "does not answer as a CXRBase server", fatal=False)
    assert result.fatal is None


@pytest.mark.parametrize(
    ("ahead", "text", "fatal"),
    [
        (86400.0, "86400 s ahead of", True), (20.0, "20 s ahead of", True),
        (-86400.0, "86400 s behind", True), (-100.0, "100 s behind", False),
    ],
)  # fmt: skip
def test_a_clock_that_is_wrong(authority: Authority, tmp_path: Path, ahead: float, text: str, fatal: bool) -> None:
    result = met(authority, tmp_path, authority.issue(), hello(time=time.time() - ahead))
    assert_only(result, Problem.CLOCK, text, fatal=fatal)
    assert result.clock_ahead == pytest.approx(ahead, abs=2)


@pytest.mark.parametrize(
    ("changes", "problem", "text", "fatal"),
    [
        ({"hospital": None}, Problem.KEY, "northlight does not know this hospital's key", True),
        ({"hospital": "lindenhof"}, Problem.KEY, "is enrolled as lindenhof, not as riverside", True),
        ({"protocol": 99}, Problem.PROTOCOL, "speaks protocol 99", False),
        ({"release": "99.0"}, Problem.RELEASE, "runs release 99.0", False),
    ],
)
def test_what_the_server_says_is_looked_at(
    authority: Authority, tmp_path: Path, changes: dict[str, Any], problem: Problem, text: str, fatal: bool
) -> None:
    result = met(authority, tmp_path, authority.issue(), hello(**changes))
    assert_only(result, problem, text, fatal=fatal)


def test_the_remedy_names_the_older_release(authority: Authority, tmp_path: Path) -> None:
    for protocol, older in ((99, "this one"), (0, "the server's")):
        result = met(authority, tmp_path, authority.issue(), hello(protocol=protocol))
        assert result.findings[0].remedy == f"update the older release, which is {older}"
