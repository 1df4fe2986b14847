"""Joining a consortium: the hospital makes its key itself, and only the public half leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.site import Site
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.kit import Kit
from cxrbase_model.settings import SettingsError, load_yaml, read


@dataclass(frozen=True)
class Membership:
    """Where the hospital keeps what it takes part with; `fingerprint` is the authority's, `public_key` goes to the operator."""

    kit: Kit
    folder: Path
    fingerprint: str

    @property
    def authority(self) -> Path:
        """The certificate by which the server is recognised."""
        return self.folder / "authority.pem"

    @property
    def key(self) -> Path:
        """The hospital's private key."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """The hospital's public key."""
        return self.folder / f"{self.kit.hospital}.pub"


def join(site: Site, kit_file: Path, *, replace: bool = False) -> Membership:
    """Take a kit and make a key, unless there is one; doing it again changes nothing.

    SettingsError where the kit is damaged, another hospital's, or of another authority than before without `replace`, by
    which a new key is made too.
    """
    try:
        kit = read(Kit, load_yaml(kit_file))
        fingerprint = kit.fingerprint
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(str(kit_file)) else f"{kit_file}: {error}") from None
    if kit.hospital != site.site:
        raise SettingsError(f"{kit_file}: is the kit of {kit.hospital}, and SITE.yaml says site: {site.site}")
    found = Membership(kit, site.private / "consortium", fingerprint)
    if found.authority.exists() and found.authority.read_text(encoding="ascii") != kit.authority and not replace:
        raise SettingsError(
            f"{kit_file}: is of another authority than the one joined before; if the consortium has a new one, say --replace"
        )
    private_folder(site.private)
    private_folder(found.folder)
    if replace or not found.key.exists():
        _make_key(found)
    write_private(found.authority, kit.authority.encode("ascii"))
    write_private(found.folder / "kit.yaml", kit_file.read_bytes())
    return found


def membership(site: Site) -> Membership:
    """What the hospital has joined with; SettingsError where it has not joined yet, or a file of it is damaged or gone."""
    folder = site.private / "consortium"
    if not (folder / "kit.yaml").exists():
        raise SettingsError(f"{site.site} has not joined a consortium yet; run cxrbase-client join KIT.yaml SITE.yaml")
    kit = read(Kit, load_yaml(folder / "kit.yaml"))
    found = Membership(kit, folder, kit.fingerprint)
    for path in (found.key, found.authority):
        if not path.exists():
            raise SettingsError(f"{path}: is not there; run cxrbase-client join KIT.yaml SITE.yaml again")
    return found


def private_key(member: Membership) -> ec.EllipticCurvePrivateKey:
    """The hospital's own key; SettingsError where its file is damaged."""
    try:
        key = serialization.load_ssh_private_key(member.key.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{member.key}: is damaged; run cxrbase-client join KIT.yaml SITE.yaml --replace")
    return key


def _make_key(membership: Membership) -> None:
    """A key in the forms that Flower's SuperNode reads and the operator enrols."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(membership.key, private)
    write_private(membership.public_key, public + f" {membership.kit.hospital}\n".encode())
