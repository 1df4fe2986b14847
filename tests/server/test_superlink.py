"""What the server answers to a hospital's hello, and that it serves nothing where it cannot put the gate before Flower."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cxrbase_model.bundle import bundle_digest, release_bundle
from cxrbase_model.hello import signed
from cxrbase_model.messages import PROTOCOL
from server import superlink
from server.consortium import Consortium
from server.enrolment import enrol, provision, revoke
from server.home import Home
from server.superlink import arguments, greeting

KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    made = Consortium(
        schema=1, name="northlight", address="localhost", hospitals=("riverside",), home=tmp_path / "home"
    )
    provision(made)
    return made


def enrol_key(consortium: Consortium, folder: Path) -> None:
    public = KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / "riverside.pub").write_bytes(public + b" riverside\n")
    enrol(consortium, "riverside", folder / "riverside.pub")


def test_a_hospital_is_told_its_name_from_the_moment_it_is_enrolled_until_it_is_revoked(
    consortium: Consortium, tmp_path: Path
) -> None:
    headers = signed(KEY, "northlight")
    assert greeting(consortium, headers).hospital is None
    enrol_key(consortium, tmp_path)
    assert greeting(consortium, headers).hospital == "riverside"
    assert greeting(consortium, {}).hospital is None
    assert greeting(consortium, signed(KEY, "southlight")).hospital is None
    assert greeting(consortium, signed(ec.generate_private_key(ec.SECP384R1()), "northlight")).hospital is None
    revoke(consortium, "riverside")
    assert greeting(consortium, headers).hospital is None


def test_everybody_is_told_which_code_and_plan_are_in_use(consortium: Consortium) -> None:
    hello = greeting(consortium, {})
    assert (hello.consortium, hello.protocol, hello.bundle, hello.plan) == ("northlight", PROTOCOL, "", "")
    assert abs(hello.time - time.time()) < 60
    bundle, home = release_bundle(), Home(consortium.home)
    home.make()
    home.use(bundle, bundle_digest(bundle), "p" * 64)
    hello = greeting(consortium, {})
    assert (hello.bundle, hello.plan) == (bundle_digest(bundle), "p" * 64)
    assert home.bundle.read_bytes() == bundle


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"bundle": "b"}', "ä"])
def test_what_is_in_use_is_nothing_where_that_was_damaged(consortium: Consortium, text: str) -> None:
    (consortium.home / "current.json").write_text(text, encoding="utf-8")
    assert greeting(consortium, {}).plan == ""


def test_hospitals_are_asked_for_their_keys_and_for_nothing_without_tls(consortium: Consortium) -> None:
    told = arguments(consortium)
    assert {
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--ssl-certfile",
        "--ssl-keyfile",
    } <= set(told)
    assert "--insecure" not in told


def test_nothing_is_served_by_a_flower_that_the_gate_does_not_fit() -> None:
    with pytest.raises(SystemExit, match=r"flwr\.superlink\.main\.create_app is not in this version of Flower"):
        superlink._wrap(SimpleNamespace(__name__="flwr.superlink.main"), "create_app", lambda made: made)
