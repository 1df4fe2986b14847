"""Keys that two hospitals agree on through a server that does not learn them (X25519, HKDF-SHA-256), and what is done with them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cxrbase_model.secure.ring import Residues

SEAL, MASK = "seal", "mask"  # what a key pair is for

_NONCE = 12  # bytes
_CHUNK = 1 << 18  # bytes of keystream at a time: they stay in the processor's cache


class KeyProblem(ValueError):
    """A public key is none, or a sealed parcel was not made for its reader."""


def new_private() -> bytes:
    """32 bytes of a new private key, or of any other secret."""
    return os.urandom(32)


def public_of(private: bytes) -> bytes:
    """The 32 bytes of the public key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, session: bytes, purpose: str, first: str, second: str) -> bytes:
    """The 32-byte key that two hospitals share for one purpose in one session; KeyProblem where the public key is none.

    Both name themselves in the same order: sender and receiver of a parcel, or the order of names for a mask.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # too short, or a point of low order that would give zeros
        raise KeyProblem("public key: expected 32 bytes of a point on Curve25519") from None
    info = "\x1f".join(["cxrbase", purpose, first, second]).encode()
    return HKDF(hashes.SHA256(), 32, salt=session, info=info).derive(shared)


def pair_mask(private: bytes, public: bytes, session: bytes, own: str, other: str) -> tuple[bytes, int]:
    """The key of the mask that two hospitals share, and its sign for `own`: the first of both names adds it, the second takes it off."""
    first, second = sorted((own, other))
    return agreed(private, public, session, MASK, first, second), 1 if own == first else -1


def seal(key: bytes, plain: bytes, session: bytes) -> bytes:
    """Encrypted and authenticated (ChaCha20-Poly1305, RFC 8439): 28 bytes longer."""
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, session)


def unseal(key: bytes, sealed: bytes, session: bytes) -> bytes:
    """What was sealed; KeyProblem where it was changed, or sealed for another."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], session)
    except (InvalidTag, ValueError):
        raise KeyProblem("parcel: expected one that was sealed for this hospital") from None


def own_mask(seed: bytes, session: bytes) -> bytes:
    """The key of the mask that a hospital alone knows, of its seed: it stays on until the server learns the seed from shares."""
    return HKDF(hashes.SHA256(), 32, salt=session, info=b"cxrbase\x1fown mask").derive(seed)


def add_mask(parts: Iterable[Residues], key: bytes, sign: int) -> None:
    """Add the mask of a key to residues in place, or take it off where `sign` is -1: the AES-256-CTR keystream as residues.

    The parts take up the keystream one after the other. A key makes one mask only, so that the counter may begin at zero.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros, drawn = memoryview(bytes(_CHUNK)), bytearray(_CHUNK + 16)
    change = np.add if sign > 0 else np.subtract
    for residues in parts:
        mask = np.frombuffer(drawn, residues.dtype, _CHUNK // residues.dtype.itemsize)
        for start in range(0, len(residues), len(mask)):
            piece = residues[start : start + len(mask)]
            stream.update_into(zeros[: piece.nbytes], drawn)
            change(piece, mask[: len(piece)], out=piece)
