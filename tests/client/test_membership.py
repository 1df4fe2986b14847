"""Joining: the hospital's key is made here and stays here."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.cli import main
from client.membership import join
from client.site import Site
from cxrbase_model.settings import SettingsError
from server.consortium import Consortium
from server.enrolment import enrol, kit_file, provision, public_key


@pytest.fixture
def make_kit(tmp_path: Path) -> Callable[..., Path]:
    """A kit from an operator's own provisioning: `make_kit(name=..., hospitals=...)`."""

    def make(home: str = "consortium", **settings: Any) -> Path:
        defaults: dict[str, Any] = {
            "schema": 1,
            "name": "northlight",
            "address": "localhost",
            "hospitals": ("riverside",),
        }
        consortium = Consortium(**defaults | settings, home=tmp_path / home)
        provision(consortium)
        return kit_file(consortium, consortium.hospitals[0])

    return make


def test_joining_makes_a_key_that_the_operator_can_enrol(
    site: Site, make_kit: Callable[..., Path], tmp_path: Path
) -> None:
    member = join(site, make_kit())
    key = serialization.load_ssh_private_key(member.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert stat.S_IMODE(member.key.stat().st_mode) == 0o600
    assert public_key(member.public_key) == key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    consortium = Consortium(
        schema=1, name="northlight", address="localhost", hospitals=("riverside",), home=tmp_path / "consortium"
    )
    assert enrol(consortium, "riverside", member.public_key) == public_key(member.public_key)
    assert b"PRIVATE" not in member.public_key.read_bytes()


def test_joining_again_keeps_the_key(site: Site, make_kit: Callable[..., Path]) -> None:
    kit = make_kit()
    key = join(site, kit).key.read_bytes()
    assert join(site, make_kit(port=9999)).key.read_bytes() == key, "the server has moved"
    assert join(site, kit, replace=True).key.read_bytes() != key


def test_another_authority_is_not_trusted_unasked(site: Site, make_kit: Callable[..., Path]) -> None:
    member = join(site, make_kit())
    before = member.authority.read_bytes()
    with pytest.raises(SettingsError, match="is of another authority than the one joined before"):
        join(site, make_kit("impostor"))
    assert member.authority.read_bytes() == before
    assert join(site, make_kit("impostor"), replace=True).authority.read_bytes() != before


def test_a_kit_that_is_not_ours_or_damaged_is_refused(site: Site, make_kit: Callable[..., Path]) -> None:
    kit = make_kit()
    with pytest.raises(SettingsError, match=r"is the kit of riverside, and SITE\.yaml says site: lindenhof"):
        join(replace(site, site="lindenhof"), kit)
    whole = yaml.safe_load(kit.read_text())
    for change, message in (
        ({"authority": whole["authority"][:200]}, "authority: expected a certificate, PEM; is the file complete"),
        ({"authority": (kit.parent.parent / "server.pem").read_text()}, "expected the certificate of an authority"),
        ({"address": "a b"}, "address: expected a host name"),
        ({"schema": 2}, "schema"),
        ({"key": "x"}, "key: unknown key"),
    ):
        kit.write_text(yaml.safe_dump(whole | change))
        with pytest.raises(SettingsError, match=message) as error:
            join(site, kit)
        assert str(error.value).startswith(str(kit))
    assert not (site.private / "consortium").exists()


def test_the_command_shows_the_fingerprint_that_the_operator_sees(
    site: Site, make_kit: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kit = make_kit()
    assert main(["join", str(kit), str(site.private.parent / "SITE.yaml")]) == 0
    assert join(site, kit).fingerprint in capsys.readouterr().out
