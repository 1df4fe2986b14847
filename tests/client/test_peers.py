"""Hospitals that know each other's keys believe signatures and not the server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from client.cli import main
from client.membership import join
from client.peers import add_peer, fingerprint, known_peers
from client.site import Site
from cxrbase_model.secure.keys import new_private
from cxrbase_model.secure.letters import (
    CONFIRM,
    SHARES,
    UNMASK,
    consent_from_bytes,
    opened_from_bytes,
    roster_to_bytes,
)
from cxrbase_model.settings import SettingsError
from server.consortium import Consortium as Operator
from server.enrolment import kit_file, provision
from tests.client.secured import consortium, constant, named


def joined(folder: Path, sites: dict[str, Site]) -> dict[str, Path]:
    """Let hospitals join a consortium; gives the files of their public keys."""
    operator = Operator(schema=1, name="test", address="localhost", hospitals=tuple(sites), home=folder / "operator")
    provision(operator)
    return {name: join(site, kit_file(operator, name)).public_key for name, site in sites.items()}


def test_signed_keys_are_believed_and_others_are_not(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    public = joined(tmp_path, made.sites)
    for name in "bc":
        assert add_peer(made.sites["a"], public[name])[0] == name
    made.train({name: constant(0) for name in "abc"})
    honest = dict(made.roster)
    forged = replace(honest["b"], seal=new_private(), mask=new_private(), seed=hashlib.sha256(b"known").digest())
    for roster in (
        honest | {"b": forged},
        honest | {"b": replace(honest["b"], signature=b"")},
        honest | {"b": replace(honest["b"], signature=honest["c"].signature)},
        honest | {"x": forged},
    ):
        assert made.refused("a", SHARES, roster_to_bytes(roster))
    assert made.done("a", SHARES, roster_to_bytes(honest))
    assert made.done("b", SHARES, roster_to_bytes(honest)), "it knows nobody's key and believes the server"


def test_a_signature_of_another_round_counts_for_nothing(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    public = joined(tmp_path, made.sites)
    add_peer(made.sites["a"], public["b"])
    add_peer(made.sites["a"], public["c"])
    made.train({name: constant(0) for name in "abc"})
    old = made.roster["b"]
    made.number = 2
    made.train({name: constant(0) for name in "abc"})
    assert made.refused("a", SHARES, roster_to_bytes(made.roster | {"b": old}))
    assert made.done("a", SHARES, roster_to_bytes(made.roster))


def test_hospitals_that_know_each_other_open_nothing_for_survivors_that_too_few_have_signed(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abcd")
    public = joined(tmp_path, made.sites)
    for name, site in made.sites.items():
        for other in "abcd":
            if other != name:
                add_peer(site, public[other])
    made.train({name: constant(0) for name in "abcd"})
    made.share()
    for name in "abcd":
        made.masked(name)
    signed = {name: consent_from_bytes(made.done(name, CONFIRM, named("abc"))) for name in "ab"}
    signed |= {"d": consent_from_bytes(made.done("d", CONFIRM, named("abd")))}
    assert made.refused("c", CONFIRM, named("abd")), "it is not among them"
    assert made.refused("a", CONFIRM, named("abd")), "a hospital signs once"
    assert made.refused("c", UNMASK, named("abc"))
    assert made.refused("c", UNMASK, named("abc", a=signed["a"])), "three of four are needed, c itself is one"
    assert made.refused("c", UNMASK, named("abc", a=signed["a"], b=signed["a"]))
    assert made.refused("c", UNMASK, named("abc", a=signed["a"], d=signed["d"]))
    assert made.refused("d", UNMASK, named("abd", a=signed["a"], b=signed["b"])), "signatures of other survivors"
    shares = opened_from_bytes(made.done("c", UNMASK, named("abc", a=signed["a"], b=signed["b"])))
    assert shares.keys.keys() == {"d"}


def test_a_hospitals_key_is_not_replaced_unnoticed(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    public = joined(tmp_path, made.sites)
    site, other = made.sites["a"], tmp_path / "other.pub"
    name, fingerprint = add_peer(site, public["b"])
    assert (name, len(fingerprint.split())) == ("b", 8)
    assert add_peer(site, public["b"]) == (name, fingerprint)
    other.write_text(public["c"].read_text(encoding="ascii").replace(" c\n", " b\n"), encoding="ascii")
    with pytest.raises(SettingsError, match="b has another key here"):
        add_peer(site, other)
    assert add_peer(site, other, replace=True)[1] != fingerprint
    with pytest.raises(SettingsError, match="is this hospital's own key"):
        add_peer(site, public["a"])
    for content in ("", "ssh-ed25519 AAAA b\n", public["b"].read_text(encoding="ascii").replace(" b\n", "\n")):
        other.write_text(content, encoding="ascii")
        with pytest.raises(SettingsError, match=r"other\.pub: expected"):
            add_peer(site, other)


def test_the_command_shows_the_fingerprint_that_the_other_hospital_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = consortium(tmp_path, "ab")
    public = joined(tmp_path, made.sites)
    assert main(["peers", str(tmp_path / "a" / "SITE.yaml")]) == 0
    assert "a knows no other hospital's key" in capsys.readouterr().out
    assert main(["peers", str(tmp_path / "a" / "SITE.yaml"), str(public["b"])]) == 0
    told = capsys.readouterr().out
    assert f"b: {fingerprint(known_peers(made.sites['a'])['b'])}" in told
    assert main(["peers", str(tmp_path / "a" / "SITE.yaml"), str(public["a"])]) == 2
    assert "is this hospital's own key" in capsys.readouterr().err
