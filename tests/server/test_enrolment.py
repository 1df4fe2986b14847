"""Provisioning and enrolment: who is given what, and which keys are taken in."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cxrbase_model.kit import Kit
from cxrbase_model.settings import SettingsError, load_yaml, read
from server.authority import Authority, addresses_of, days_left
from server.cli import main
from server.consortium import Consortium, read_consortium
from server.enrolment import enrol, enrolled, kit_file, provision, revoke

SETTINGS = {
    "schema": 1,
    "name": "northlight",
    "address": "localhost",
    "more_addresses": ["127.0.0.1"],
    "port": 9443,
    "hospitals": ["riverside", "lindenhof"],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "consortium.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return tmp_path / "consortium.yaml"


@pytest.fixture
def consortium(file: Path) -> Consortium:
    return read_consortium(file)


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[..., Path]:
    """Writes the public half of a new key."""

    def make(name: str, curve: ec.EllipticCurve | None = None) -> Path:
        key = ec.generate_private_key(curve or ec.SECP384R1())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (tmp_path / f"{name}.pub").write_bytes(public + b" a comment\n")
        return tmp_path / f"{name}.pub"

    return make


def test_provisioning_again_changes_nothing_and_renewing_only_the_server(consortium: Consortium) -> None:
    provision(consortium)
    first = {path: path.read_bytes() for path in consortium.home.rglob("*") if path.is_file()}
    provision(consortium)
    assert {path: path.read_bytes() for path in consortium.home.rglob("*") if path.is_file()} == first
    provision(consortium, renew=True)
    changed = {path.name for path, data in first.items() if path.read_bytes() != data}
    assert changed == {"server.pem", "server.key"}


def test_another_address_gives_another_certificate(consortium: Consortium) -> None:
    assert addresses_of(provision(consortium).server_certificate()) == {"localhost", "127.0.0.1"}
    moved = replace(consortium, more_addresses=("cxr.example.org", "::1"))
    assert addresses_of(provision(moved).server_certificate()) == {"localhost", "127.0.0.1", "cxr.example.org", "::1"}


@pytest.mark.parametrize(
    ("bind", "here", "certified"),
    [
        ("0.0.0.0", "127.0.0.1:9443", set()),
        ("127.0.0.1", "127.0.0.1:9443", set()),
        ("192.0.2.1", "192.0.2.1:9443", {"192.0.2.1"}),
        ("::", "[::1]:9443", {"::1"}),
        ("2001:db8::1", "[2001:db8::1]:9443", {"2001:db8::1"}),
        ("2001:0db8:0::0001", "[2001:db8::1]:9443", {"2001:db8::1"}),
    ],
)
def test_the_server_is_certified_where_this_machines_own_programs_reach_it(
    consortium: Consortium, bind: str, here: str, certified: set[str]
) -> None:
    bound = replace(consortium, bind=bind, more_addresses=("2001:0db8::0002", "127.0.0.1"))
    assert bound.here == here
    assert set(bound.certified) == {"localhost", "127.0.0.1", "2001:db8::2"} | certified
    assert addresses_of(provision(bound).server_certificate()) == set(bound.certified)
    issued = Authority(bound.home).server_file.read_bytes()
    provision(bound)
    assert Authority(bound.home).server_file.read_bytes() == issued, "the same addresses need no new certificate"


def test_certificates_last_as_long_as_the_settings_say(consortium: Consortium) -> None:
    authority = provision(replace(consortium, certificate_days=20, authority_days=100))
    assert (days_left(authority.server_certificate()), days_left(authority.certificate())) == (19, 99)


def test_all_files_are_the_operators_alone(consortium: Consortium, make_key: Callable[..., Path]) -> None:
    os.umask(0o022)
    provision(consortium)
    enrol(consortium, "riverside", make_key("a"))
    for path in (consortium.home, *consortium.home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_kit_holds_no_secret(consortium: Consortium) -> None:
    provision(consortium)
    for hospital in consortium.hospitals:
        text = kit_file(consortium, hospital).read_text()
        assert "PRIVATE" not in text
        kit = read(Kit, load_yaml(kit_file(consortium, hospital)))
        assert (kit.hospital, kit.address, kit.port) == (hospital, "localhost", 9443)


def handshake(consortium: Consortium, trusted: Path, name: str) -> str:
    """The protocol of a TLS connection to a server with the consortium's certificate."""
    authority = Authority(consortium.home)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(authority.server_file, authority.server_key_file)
    calling = ssl.create_default_context(cafile=str(trusted))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True):
                pass
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with calling.wrap_socket(ours, server_hostname=name) as connection:
            return str(connection.version())
    finally:
        ours.close()
        thread.join()


def test_the_server_is_recognised_by_the_authority_alone(consortium: Consortium, tmp_path: Path) -> None:
    provision(consortium)
    trusted = Authority(consortium.home).certificate_file
    assert handshake(consortium, trusted, "localhost") == "TLSv1.3"
    assert handshake(consortium, trusted, "127.0.0.1") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'example\.org'"):
        handshake(consortium, trusted, "example.org")
    other = replace(consortium, home=tmp_path / "other")
    provision(other)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(consortium, Authority(other.home).certificate_file, "localhost")


def test_a_key_is_enrolled_once_and_replaced_only_when_told(
    consortium: Consortium, make_key: Callable[..., Path]
) -> None:
    provision(consortium)
    first = enrol(consortium, "riverside", make_key("a"))
    assert enrol(consortium, "riverside", make_key("b").with_name("a.pub")) == first, "the same key again"
    with pytest.raises(SettingsError, match="riverside: has another key"):
        enrol(consortium, "riverside", make_key("c"))
    assert enrolled(consortium) == {"riverside": first}
    second = enrol(consortium, "riverside", make_key("d"), replace=True)
    assert enrolled(consortium) == {"riverside": second}
    with pytest.raises(SettingsError, match="is the key of riverside"):
        enrol(consortium, "lindenhof", make_key("e").with_name("d.pub"))
    revoke(consortium, "riverside")
    assert enrolled(consortium) == {}
    with pytest.raises(SettingsError, match="expected an enrolled one, none; found 'riverside'"):
        revoke(consortium, "riverside")


def test_a_key_that_was_revoked_or_replaced_never_comes_back(
    consortium: Consortium, file: Path, make_key: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    provision(consortium)
    enrol(consortium, "riverside", make_key("first"))
    revoke(consortium, "riverside")
    for hospital in ("riverside", "lindenhof"):
        for replace_it in (False, True):
            with pytest.raises(
                SettingsError, match=r"first\.pub: this key was revoked or replaced and cannot come back"
            ):
                enrol(consortium, hospital, make_key("unused").with_name("first.pub"), replace=replace_it)
    assert main(["enrol", str(file), "riverside", str(file.with_name("first.pub"))]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith("the hospital makes a new one with cxrbase-client join --replace\n")
    second = enrol(consortium, "riverside", make_key("second"))
    third = enrol(consortium, "riverside", make_key("third"), replace=True)
    with pytest.raises(SettingsError, match="cannot come back"):
        enrol(consortium, "riverside", file.with_name("second.pub"), replace=True)
    assert enrolled(consortium) == {"riverside": third}
    assert enrol(consortium, "riverside", file.with_name("third.pub"), replace=True) == third
    assert second in [path.read_bytes() for path in (consortium.home / "revoked").iterdir()]
    assert stat.S_IMODE((consortium.home / "revoked").stat().st_mode) == 0o700


def test_a_refusal_to_replace_a_key_revokes_nothing(consortium: Consortium, make_key: Callable[..., Path]) -> None:
    provision(consortium)
    enrol(consortium, "riverside", make_key("a"))
    with pytest.raises(SettingsError, match="say --replace"):
        enrol(consortium, "riverside", make_key("b"))
    assert not (consortium.home / "revoked").exists()
    revoke(consortium, "riverside")
    assert enrol(consortium, "riverside", make_key("c").with_name("b.pub"))


def test_what_is_no_key_of_a_hospital_is_refused(
    consortium: Consortium, make_key: Callable[..., Path], tmp_path: Path
) -> None:
    provision(consortium)
    with pytest.raises(SettingsError, match="HOSPITAL: expected one of riverside, lindenhof"):
        enrol(consortium, "elsewhere", make_key("a"))
    with pytest.raises(SettingsError, match="expected a key on the curve NIST P-384"):
        enrol(consortium, "riverside", make_key("b", ec.SECP256R1()))
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed.pub").write_bytes(
        other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(SettingsError, match="expected a key on the curve NIST P-384"):
        enrol(consortium, "riverside", tmp_path / "ed.pub")
    (tmp_path / "text.pub").write_text("Dear operator")
    with pytest.raises(SettingsError, match="expected the public key that cxrbase-client join has made"):
        enrol(consortium, "riverside", tmp_path / "text.pub")
    with pytest.raises(SettingsError, match="cannot be read"):
        enrol(consortium, "riverside", tmp_path / "none.pub")
    assert enrolled(consortium) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "https://cxr.example.org"}, "address: expected a host name or an IP address alone"),
        ({"address": "cxr.example.org:9443"}, "address: expected a host name"),
        ({"hospitals": ["a", "a"]}, "hospitals: expected one or more, each once"),
        ({"hospitals": []}, "hospitals: expected one or more"),
        ({"hospitals": ["../a"]}, r"hospitals: expected 1 to 64 letters, digits, - and _, found '\.\./a'"),
        ({"name": ""}, "name: expected 1 to 64"),
        ({"port": 0}, "port"),
        ({"bind": "localhost"}, "bind: expected an IP address of this machine, found 'localhost'"),
        ({"bind": "0.0.0.0:9443"}, "bind: expected an IP address"),
        ({"bind": ""}, "bind: expected an IP address"),
        ({"prot": 1}, "prot: unknown key"),
    ],
)
def test_a_wrong_setting_is_named(file: Path, change: dict[str, object], message: str) -> None:
    file.write_text(yaml.safe_dump(SETTINGS | change), encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        read_consortium(file)


def test_the_commands_of_the_operator(
    file: Path, make_key: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["provision", str(file)]) == 0
    told = capsys.readouterr().out
    assert "riverside  not yet enrolled; its kit to send is" in told
    assert "riverside.kit.yaml" in told
    assert main(["enrol", str(file), "riverside", str(make_key("a"))]) == 0
    assert "Not yet: lindenhof." in capsys.readouterr().out
    assert main(["enrol", str(file), "nowhere", str(make_key("a"))]) == 2
    assert main(["revoke", str(file), "riverside"]) == 0
    file.write_text(yaml.safe_dump(SETTINGS | {"certificate_days": 20}), encoding="utf-8")
    assert main(["provision", str(file), "--renew"]) == 0
    assert "19 days; run provision --renew" in " ".join(capsys.readouterr().out.split())


def test_the_folder_named_when_provisioning_is_kept_in_the_settings(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["provision", str(file), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "authority.pem").exists()
    assert read_consortium(file).home == tmp_path / "elsewhere"
    assert main(["provision", str(file), "--out", str(tmp_path / "elsewhere")]) == 0
    assert main(["provision", str(file), "--out", str(tmp_path / "third")]) == 2
    assert "--out: expected" in capsys.readouterr().err
