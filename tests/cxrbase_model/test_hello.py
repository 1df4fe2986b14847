"""A signed hello names its key to the consortium it was signed for; everything else is nobody."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from cxrbase_model.hello import Hello, hello_from_json, hello_to_json, signed, signer

HELLO = Hello(1, "northlight", "0.1.0", 2, "b" * 64, "a" * 64, 1.7e9, "riverside")
KEY = ec.generate_private_key(ec.SECP384R1())
PLAIN = KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def test_a_signed_request_names_its_key() -> None:
    assert signer(signed(KEY, "northlight"), "northlight") == PLAIN


def test_a_request_for_another_consortium_or_with_another_time_is_nobodys() -> None:
    headers = signed(KEY, "northlight")
    assert signer(headers, "southlight") is None
    assert signer(headers | {"cxrbase-time": f"{float(headers['cxrbase-time']) + 1:.3f}"}, "northlight") is None


def test_another_key_cannot_take_over_a_signature() -> None:
    other = signed(ec.generate_private_key(ec.SECP384R1()), "northlight")
    headers = signed(KEY, "northlight")
    assert signer(headers | {"cxrbase-key": other["cxrbase-key"]}, "northlight") is None
    assert signer(headers | {"cxrbase-signature": other["cxrbase-signature"]}, "northlight") is None


@pytest.mark.parametrize("missing", ["cxrbase-key", "cxrbase-time", "cxrbase-signature"])
def test_a_request_that_lacks_a_header_is_nobodys(missing: str) -> None:
    headers = signed(KEY, "northlight")
    del headers[missing]
    assert signer(headers, "northlight") is None
    assert signer({}, "northlight") is None


@pytest.mark.parametrize("name", ["cxrbase-key", "cxrbase-signature"])
@pytest.mark.parametrize("text", ["", "!", "abc", "Grüße", "AAAA", "c3NoLXJzYSBBQUFB", "c3NoLWRzcyBBQUFB", "A" * 20000])
def test_garbage_is_nobodys(name: str, text: str) -> None:
    assert signer(signed(KEY, "northlight") | {name: text}, "northlight") is None


def encoded(key: rsa.RSAPublicKey | ed25519.Ed25519PublicKey) -> str:
    public = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64encode(public).decode()


def test_keys_of_other_kinds_are_nobodys_even_where_they_have_signed() -> None:
    headers = signed(KEY, "northlight")
    text = f"cxrbase hello\nnorthlight\n{headers['cxrbase-time']}".encode()
    big = rsa.generate_private_key(65537, 2048)
    signature = base64.b64encode(big.sign(text, padding.PKCS1v15(), hashes.SHA256())).decode()
    assert (
        signer(headers | {"cxrbase-key": encoded(big.public_key()), "cxrbase-signature": signature}, "northlight")
        is None
    )
    edwards = ed25519.Ed25519PrivateKey.generate()
    signature = base64.b64encode(edwards.sign(text)).decode()
    assert (
        signer(headers | {"cxrbase-key": encoded(edwards.public_key()), "cxrbase-signature": signature}, "northlight")
        is None
    )


def test_a_damaged_key_never_ends_in_anything_but_nobody() -> None:
    headers, chance = signed(KEY, "northlight"), random.Random(3)
    kind, point = PLAIN.split(b" ")
    raw = base64.b64decode(point)
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << chance.randrange(8)
        public = base64.b64encode(kind + b" " + base64.b64encode(damaged)).decode()
        assert signer(headers | {"cxrbase-key": public}, "northlight") is None
    start = raw.index(b"\x04", 30)
    compressed = raw[:start] + b"\x02" + raw[start + 1 :]
    public = base64.b64encode(kind + b" " + base64.b64encode(compressed)).decode()
    assert signer(headers | {"cxrbase-key": public}, "northlight") is None


def test_an_answer_arrives_as_it_was_given() -> None:
    for hello in (HELLO, replace(HELLO, hospital=None, bundle="")):
        assert hello_from_json(json.loads(json.dumps(hello_to_json(hello)))) == hello


@pytest.mark.parametrize(
    "content", [None, [], "hello", 1, {}, hello_to_json(HELLO) | {"schema": 2}, {"detail": "Not Found"}]
)
def test_the_answer_of_another_server_is_told_from_a_damaged_one(content: object) -> None:
    with pytest.raises(ValueError, match="found another one"):
        hello_from_json(content)


@pytest.mark.parametrize(
    "change",
    [
        {"consortium": None}, {"release": 1}, {"protocol": "2"}, {"bundle": []}, {"plan": None}, {"time": "now"}, {"time": None},
        {"time": float("nan")}, {"time": float("inf")}, {"hospital": 3}, {"hospital": ["riverside"]}, {"time": 10**400},
    ],
)  # fmt: skip
def test_a_damaged_answer_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="found a damaged one"):
        hello_from_json(hello_to_json(HELLO) | change)


@pytest.mark.parametrize("missing", ["consortium", "release", "protocol", "bundle", "plan", "time"])
def test_an_answer_that_lacks_something_is_refused(missing: str) -> None:
    content = hello_to_json(HELLO)
    del content[missing]
    with pytest.raises(ValueError, match="found a damaged one"):
        hello_from_json(content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bundle", "../../etc"),
        ("plan", "A" * 64),
        ("consortium", "north\x1b[2Jlight"),
        ("release", "0.1.0\nok    everything"),
        ("hospital", "a/b"),
        ("protocol", True),
    ],
)
def test_nothing_that_a_server_says_can_steer_a_terminal_or_name_another_file(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="found a damaged one"):
        hello_from_json(hello_to_json(HELLO) | {name: value})
