"""What a hospital can ask the consortium's server before any training: is its key enrolled, and which release, code and plan are in use?

A plain GET over TLS. The hospital may sign it with its key; the answer then says under which name that key is enrolled. A copy of a
signed request that somebody sends again learns that name and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HELLO_PATH = "/v1/cxrbase/hello"
HELLO_SCHEMA = 1

_LATEST = 1e12  # seconds since 1970; no clock shows more, and what is not a number does not compare
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIGEST = re.compile(r"([0-9a-f]{64})?")
_TEXTS = {"consortium": _NAME, "release": re.compile(r"[A-Za-z0-9.+!_-]{1,64}"), "bundle": _DIGEST, "plan": _DIGEST}
_KEY, _TIME, _SIGNATURE = "cxrbase-key", "cxrbase-time", "cxrbase-signature"


@dataclass(frozen=True)
class Hello:
    """The server's answer. `bundle` and `plan` are digests, empty where there is none yet; `time` is the server's clock, seconds
    since 1970; `hospital` is the name under which the key that signed the request is enrolled, None where it is not.
    """

    schema: int
    consortium: str
    release: str
    protocol: int
    bundle: str
    plan: str
    time: float
    hospital: str | None = None


def hello_to_json(hello: Hello) -> dict[str, object]:
    """The JSON object of an answer."""
    return asdict(hello)


def hello_from_json(content: object) -> Hello:
    """The answer of a JSON object; ValueError where it is none of this schema. What it says can be printed and be a file's name."""
    if not isinstance(content, dict) or content.get("schema") != HELLO_SCHEMA:
        raise ValueError("expected the answer of a CXRBase server, found another one")
    values: dict[str, Any] = {name: content.get(name) for name in Hello.__dataclass_fields__}
    if not all(_is_sound(name, value) for name, value in values.items()):
        raise ValueError("expected the answer of a CXRBase server, found a damaged one")
    return Hello(**values)


def _is_sound(name: str, value: object) -> bool:
    if name in _TEXTS:
        return isinstance(value, str) and _TEXTS[name].fullmatch(value) is not None
    if name == "hospital":
        return value is None or (isinstance(value, str) and _NAME.fullmatch(value) is not None)
    if name == "time":
        return isinstance(value, int | float) and abs(value) < _LATEST
    return type(value) is int


def signed(key: ec.EllipticCurvePrivateKey, consortium: str) -> dict[str, str]:
    """The headers that sign a request for this consortium."""
    now = f"{time.time():.3f}"
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    signature = key.sign(_text(consortium, now), ec.ECDSA(hashes.SHA256()))
    return {_KEY: _encode(public), _TIME: now, _SIGNATURE: _encode(signature)}


def signer(headers: Mapping[str, str], consortium: str) -> bytes | None:
    """The public key (OpenSSH, without a comment) that has signed a request for this consortium; None where none has."""
    try:
        public = base64.b64decode(headers[_KEY], validate=True)
        key = serialization.load_ssh_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return None
        signature = base64.b64decode(headers[_SIGNATURE], validate=True)
        key.verify(signature, _text(consortium, headers[_TIME]), ec.ECDSA(hashes.SHA256()))
    except (KeyError, ValueError, binascii.Error, InvalidSignature, UnsupportedAlgorithm, NotImplementedError):
        return None
    return public


def _text(consortium: str, now: str) -> bytes:
    return f"cxrbase hello\n{consortium}\n{now}".encode()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
