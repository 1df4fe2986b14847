"""Which hospitals take part: a kit for each, and the public key that each has handed back."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cxrbase_model.files import private_folder, write_private
from cxrbase_model.kit import KIT_SCHEMA, Kit
from cxrbase_model.settings import SettingsError, to_mapping
from server.authority import Authority, addresses_of
from server.consortium import Consortium

_LONGEST_KEY = 4096  # bytes of a public key's file


def provision(consortium: Consortium, *, renew: bool = False) -> Authority:
    """Make what is missing: the authority, the server's certificate, a kit for each hospital; doing it again changes nothing.

    renew: make a new server certificate. One is made also where the server's addresses have changed.
    """
    home = consortium.home
    private_folder(home)
    authority = Authority(home)
    if not authority.exists():
        authority.make(consortium.name, consortium.authority_days)
    addresses = consortium.certified
    if renew or not authority.server_file.exists() or addresses_of(authority.server_certificate()) != set(addresses):
        authority.issue(addresses, consortium.certificate_days)
    private_folder(home / "kits")
    for hospital in consortium.hospitals:
        text = yaml.safe_dump(to_mapping(kit(consortium, hospital)), sort_keys=False)
        write_private(kit_file(consortium, hospital), text.encode())
    return authority


def kit(consortium: Consortium, hospital: str) -> Kit:
    """What a hospital joins with; the authority must have been made."""
    return Kit(
        schema=KIT_SCHEMA,
        consortium=consortium.name,
        hospital=hospital,
        address=consortium.address,
        port=consortium.port,
        authority=Authority(consortium.home).certificate_file.read_text(encoding="ascii"),
    )


def kit_file(consortium: Consortium, hospital: str) -> Path:
    """Where a hospital's kit is."""
    return consortium.home / "kits" / f"{hospital}.kit.yaml"


def enrolled(consortium: Consortium) -> dict[str, bytes]:
    """The public key of each enrolled hospital, by name."""
    found: dict[str, bytes] = {}
    for path in sorted((consortium.home / "enrolled").glob("*.pub")):
        with contextlib.suppress(FileNotFoundError):  # one may be revoked at this moment
            found |= {path.stem: path.read_bytes()} if path.stem in consortium.hospitals else {}
    return found


def enrol(consortium: Consortium, hospital: str, key_file: Path, *, replace: bool = False) -> bytes:
    """Take in the public key that a hospital has handed back; gives it in its plain form.

    SettingsError where the hospital is not of the consortium, the key is none, is another hospital's, was revoked, or would
    take the place of another key without `replace`.
    """
    if hospital not in consortium.hospitals:
        known = ", ".join(consortium.hospitals)
        raise SettingsError(f"HOSPITAL: expected one of {known}, as in consortium.yaml; found {hospital!r}")
    key = public_key(key_file)
    there = enrolled(consortium)
    for other, its_key in there.items():
        if its_key == key and other != hospital:
            raise SettingsError(
                f"{key_file}: is the key of {other}; each hospital makes its own with cxrbase-client join"
            )
    if there.get(hospital) != key and _revoked_file(consortium, key).exists():
        raise SettingsError(
            f"{key_file}: this key was revoked or replaced and cannot come back; "
            "the hospital makes a new one with cxrbase-client join --replace"
        )
    if there.get(hospital, key) != key:
        if not replace:
            raise SettingsError(f"{hospital}: has another key; if the hospital has made a new one, say --replace")
        _keep_revoked(consortium, there[hospital])
    folder = consortium.home / "enrolled"
    private_folder(folder)
    write_private(folder / f"{hospital}.pub", key)
    return key


def revoke(consortium: Consortium, hospital: str) -> None:
    """Let a hospital's key not be accepted any more, ever; SettingsError where it has none."""
    there = enrolled(consortium)
    if hospital not in there:
        raise SettingsError(f"HOSPITAL: expected an enrolled one, {', '.join(there) or 'none'}; found {hospital!r}")
    _keep_revoked(consortium, there[hospital])
    (consortium.home / "enrolled" / f"{hospital}.pub").unlink()


def _keep_revoked(consortium: Consortium, key: bytes) -> None:
    """Remember a key that was taken out: Flower never lets one in again."""
    private_folder(consortium.home / "revoked")
    write_private(_revoked_file(consortium, key), key)


def _revoked_file(consortium: Consortium, key: bytes) -> Path:
    return consortium.home / "revoked" / f"{hashlib.sha256(key).hexdigest()[:32]}.pub"


def public_key(path: Path) -> bytes:
    """A hospital's public key in its plain form, without the comment; SettingsError where the file holds none of the right kind."""
    try:
        with path.open("rb") as file:
            key = serialization.load_ssh_public_key(file.read(_LONGEST_KEY))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # noqa: BLE001  # cryptography raises many kinds on what is no key
        raise SettingsError(f"{path}: expected the public key that cxrbase-client join has made, found none") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SettingsError(f"{path}: expected a key on the curve NIST P-384, found another kind")
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
