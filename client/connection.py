"""Can this hospital reach its consortium's server, and if not, why not? From the name over TLS to the server's own answer.

    DNS -> TCP -> TLS with the consortium's authority -> hello -> clock, key, protocol, release

The first four end the way where they fail; what the server says is looked at as a whole. Nothing is sent but a signed request.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version

from client.membership import Membership, private_key
from cxrbase_model.hello import HELLO_PATH, Hello, hello_from_json, signed
from cxrbase_model.messages import PROTOCOL

AHEAD, BEHIND = (
    5.0,
    60.0,
)  # seconds that the clock may be off; Flower takes no signature from the future, nor one of 5 minutes ago

_TIMEOUT = 8.0  # seconds for each step
_LARGEST = 1 << 16  # bytes of an answer
_SERVER = "ask the operator whether the server runs"
_NOT_YET, _EXPIRED, _NAMES = (
    9,
    10,
    (62, 64),
)  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH


class Problem(StrEnum):
    """What stands between a hospital and its server."""

    DNS = "dns"
    UNREACHABLE = "unreachable"
    PLAINTEXT = "plaintext"
    AUTHORITY = "authority"
    EXPIRED = "expired"
    NAME = "name"
    TLS = "tls"
    HELLO = "hello"
    CLOCK = "clock"
    KEY = "key"
    PROTOCOL = "protocol"
    RELEASE = "release"


@dataclass(frozen=True)
class Finding:
    """A problem, in words, with what to do about it; `fatal` where the hospital cannot take part meanwhile.

    problem: None where it is of this machine alone.
    """

    problem: Problem | None
    text: str
    remedy: str
    fatal: bool = True


@dataclass(frozen=True)
class Probe:
    """What was found on the way: problems, the server's answer, days until its certificate ends, and seconds that this clock is ahead."""

    findings: tuple[Finding, ...] = ()
    hello: Hello | None = None
    certificate_days: float | None = None
    clock_ahead: float | None = None

    @property
    def fatal(self) -> Finding | None:
        """The first problem that keeps the hospital out."""
        return next((finding for finding in self.findings if finding.fatal), None)

    def found(self, *problems: Problem) -> Finding | None:
        """The first of these problems that was found."""
        return next((finding for finding in self.findings if finding.problem in problems), None)


class _Stopped(Exception):
    def __init__(self, problem: Problem, text: str, remedy: str, *, fatal: bool = True) -> None:
        super().__init__(text)
        self.finding = Finding(problem, text, remedy, fatal)


def probe(member: Membership, timeout: float = _TIMEOUT) -> Probe:
    """Go the whole way to the server; SettingsError where the hospital's own key is damaged. timeout: seconds for each step."""
    where = f"{member.kit.address} port {member.kit.port}"
    days = None
    try:
        with _secure(_connect(member, where, timeout), member, where) as line:
            days = _days_left(line)
            hello, ahead = _ask(line, member, where)
    except _Stopped as stopped:
        return Probe((stopped.finding,), certificate_days=days)
    return Probe(tuple(_judge(hello, ahead, member)), hello, days, ahead)


def _connect(member: Membership, where: str, timeout: float) -> socket.socket:
    try:
        found = socket.getaddrinfo(member.kit.address, member.kit.port, type=socket.SOCK_STREAM)
    except OSError:
        remedy = "is this machine's network up, and does its DNS know the server? The address is the one in the kit"
        raise _Stopped(Problem.DNS, f"the name {member.kit.address} is not known here", remedy) from None
    reason = ""
    for family, kind, protocol, _, address in found:
        line = socket.socket(family, kind, protocol)
        line.settimeout(timeout)
        try:
            line.connect(address)
            return line
        except OSError as error:
            line.close()
            refused = isinstance(error, ConnectionRefusedError)
            reason = "refuses the connection" if refused else "does not answer"
    remedy = f"{_SERVER}, and your network's administrators whether outgoing connections to that port are allowed"
    raise _Stopped(Problem.UNREACHABLE, f"{where} {reason}", remedy)


def _secure(line: socket.socket, member: Membership, where: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(member.authority))
    try:
        return context.wrap_socket(line, server_hostname=member.kit.address)
    except ssl.SSLCertVerificationError as error:
        line.close()
        raise _distrusted(error, where) from None
    except (OSError, ValueError) as error:
        line.close()
        if isinstance(error, ssl.SSLError) and error.reason in (
            "WRONG_VERSION_NUMBER",
            "RECORD_LAYER_FAILURE",
            "HTTP_REQUEST",
        ):
            raise _Stopped(
                Problem.PLAINTEXT, f"{where} speaks no TLS", "ask the operator; nothing is sent in plain text"
            ) from None
        remedy = f"{_SERVER}, and your network's administrators whether TLS is let through to it untouched"
        raise _Stopped(Problem.TLS, f"{where} ends the TLS handshake", remedy) from None


def _distrusted(error: ssl.SSLCertVerificationError, where: str) -> _Stopped:
    today = time.strftime("%Y-%m-%d")
    if error.verify_code == _EXPIRED:
        remedy = f"ask the operator to renew it; is {today} the right date?"
        return _Stopped(Problem.EXPIRED, f"the certificate of {where} has expired", remedy)
    if error.verify_code == _NOT_YET:
        return _Stopped(
            Problem.CLOCK,
            f"the certificate of {where} is not valid yet",
            f"set this machine's clock; is {today} right?",
        )
    if error.verify_code in _NAMES:
        remedy = "ask the operator whether the server's address has changed; a new kit names the new one"
        return _Stopped(Problem.NAME, f"the certificate of {where} is for another name", remedy)
    remedy = "somebody else answers there, such as a proxy that opens TLS, or the consortium has a new authority: ask the operator"
    return _Stopped(Problem.AUTHORITY, f"the certificate of {where} is not of the consortium's authority", remedy)


def _days_left(line: ssl.SSLSocket) -> float | None:
    """Days until the server's certificate ends."""
    ends = (line.getpeercert() or {}).get("notAfter")
    return None if not isinstance(ends, str) else (ssl.cert_time_to_seconds(ends) - time.time()) / 86400


def _ask(line: ssl.SSLSocket, member: Membership, where: str) -> tuple[Hello, float]:
    """The server's answer, and by how many seconds this machine's clock is ahead of its."""
    connection = http.client.HTTPConnection(member.kit.address, member.kit.port)
    connection.sock = line
    asked = time.time()
    try:
        connection.request("GET", HELLO_PATH, headers=signed(private_key(member), member.kit.consortium))
        response = connection.getresponse()
        content = response.read(_LARGEST)
        if response.status != http.client.OK:
            raise ValueError(f"status {response.status}")
        hello = hello_from_json(json.loads(content))
    except (OSError, ValueError, http.client.HTTPException):
        remedy = "ask the operator for the release that the server runs; it may be older than this one"
        raise _Stopped(
            Problem.HELLO, f"{where} does not answer as a CXRBase server does", remedy, fatal=False
        ) from None
    return hello, (asked + time.time()) / 2 - hello.time


def _judge(hello: Hello, ahead: float, member: Membership) -> list[Finding]:
    """What is wrong with what the server says."""
    found = []
    if not -BEHIND <= ahead <= AHEAD:
        text = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
        remedy = (
            "set the clock, best by NTP (timedatectl set-ntp true); the server takes no signature from another time"
        )
        found.append(Finding(Problem.CLOCK, text, remedy, fatal=ahead > AHEAD or ahead < -4 * BEHIND))
    if hello.hospital is None:
        remedy = f"send the operator {member.public_key} again, to be enrolled; it is unknown there, or was revoked"
        found.append(Finding(Problem.KEY, f"{hello.consortium} does not know this hospital's key", remedy))
    elif hello.hospital != member.kit.hospital:
        text = f"this hospital's key is enrolled as {hello.hospital}, not as {member.kit.hospital}"
        found.append(Finding(Problem.KEY, text, "ask the operator which of both is right"))
    if hello.protocol != PROTOCOL:
        older = "this one" if hello.protocol > PROTOCOL else "the server's"
        text = f"the server speaks protocol {hello.protocol}, this release protocol {PROTOCOL}"
        found.append(Finding(Problem.PROTOCOL, text, f"update the older release, which is {older}", fatal=False))
    elif hello.release != version("cxrbase"):
        text = f"the server runs release {hello.release}, this is {version('cxrbase')}"
        remedy = f"install release {hello.release}, or approve its code: cxrbase-client approve SITE.yaml"
        found.append(Finding(Problem.RELEASE, text, remedy, fatal=False))
    return found
