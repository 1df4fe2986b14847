"""Public keys of other hospitals, which hospitals hand each other without the server: with them no server can pass off keys as theirs.

A hospital that has taken in any believes signed keys alone; one that has none believes what the server sends.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.membership import membership, private_key
from client.site import Site
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.kit import check_name
from cxrbase_model.settings import SettingsError

Peer = ec.EllipticCurvePublicKey

_LONGEST_KEY = 4096  # bytes of a public key's file
_JOINED = "kit.yaml"


def known_peers(site: Site) -> dict[str, Peer]:
    """The keys of other hospitals by name, none where none were taken in; SettingsError where a file of one is damaged."""
    return {path.stem: _read(path)[0] for path in sorted(_folder(site).glob("*.pub"))}


def add_peer(site: Site, file: Path, *, replace: bool = False) -> tuple[str, str]:
    """Take in the public key that another hospital's `join` has made; returns its name and its fingerprint, to be compared by telephone.

    SettingsError where the file holds none, or another key of that name was taken in before, without `replace`.
    """
    key, name = _read(file)
    check_name(str(file), name)
    if name == site.site:
        raise SettingsError(f"{file}: is this hospital's own key; expected another's")
    known = known_peers(site).get(name)
    if known is not None and known.public_numbers() != key.public_numbers() and not replace:
        raise SettingsError(f"{file}: {name} has another key here; if it has made a new one, say --replace")
    private_folder(_folder(site).parent)
    private_folder(_folder(site))
    write_private(_folder(site) / f"{name}.pub", _plain(key) + f" {name}\n".encode())
    return name, fingerprint(key)


def fingerprint(key: Peer) -> str:
    """The SHA-256 of a public key in groups of eight, as people compare it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_plain(key))
    text = digest.finalize().hex().upper()
    return " ".join(text[start : start + 8] for start in range(0, 64, 8))


def sign(site: Site, text: bytes) -> bytes:
    """The signature (ECDSA P-384, SHA-384) of a text by the key that this hospital joined with; empty where it has not joined."""
    if not (site.private / "consortium" / _JOINED).exists():
        return b""
    return private_key(membership(site)).sign(text, ec.ECDSA(hashes.SHA384()))


def verified(key: Peer | None, signature: bytes, text: bytes) -> bool:
    """Whether a text was signed by a key; not where the key is unknown."""
    if key is None:
        return False
    try:
        key.verify(signature, text, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _folder(site: Site) -> Path:
    return site.private / "consortium" / "peers"


def _plain(key: Peer) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _read(path: Path) -> tuple[Peer, str]:
    """The key of a file and the hospital that it says it is of."""
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_KEY)
        key = serialization.load_ssh_public_key(data)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{path}: expected the public key that cxrbase-client join has made, found none") from None
    words = data.decode("ascii", "replace").split()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1) or len(words) != 3:
        raise SettingsError(f"{path}: expected a key on the curve NIST P-384 with its hospital's name behind it")
    return key, words[2]
