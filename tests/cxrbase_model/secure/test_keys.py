"""Two hospitals agree on a mask that cancels; a parcel opens for its receiver alone."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cxrbase_model.secure import keys
from cxrbase_model.secure.keys import (
    MASK,
    SEAL,
    KeyProblem,
    add_mask,
    agreed,
    new_private,
    own_mask,
    pair_mask,
    public_of,
    seal,
    unseal,
)

SESSION = b"s" * 32


def pair() -> tuple[bytes, bytes]:
    private = new_private()
    return private, public_of(private)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_masks_of_a_pair_cancel(dtype: type) -> None:
    (a, public_a), (b, public_b) = pair(), pair()
    size = 3 * keys._CHUNK // 4 + 5  # more than one piece, and not a whole number of blocks
    zeros = [np.zeros(3, np.uint32), np.zeros(size, dtype)]
    first, second = [[each.copy() for each in zeros] for _ in range(2)]
    add_mask(first, *pair_mask(a, public_b, SESSION, "a", "b"))
    add_mask(second, *pair_mask(b, public_a, SESSION, "b", "a"))
    for one, other in zip(first, second, strict=True):
        assert len(np.unique(one)) > len(one) // 4
        assert not (one + other).any()


def test_a_mask_is_the_keystream_of_aes_in_counter_mode() -> None:
    key, size = new_private(), keys._CHUNK + 1000
    parts = [np.zeros(3, "<u4"), np.zeros(size // 4, "<u4")]
    add_mask(parts, key, 1)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(12 + size))
    assert b"".join(each.tobytes() for each in parts) == stream
    add_mask(parts, key, -1)
    assert not any(each.any() for each in parts)


def test_a_key_is_for_one_purpose_one_session_and_one_direction() -> None:
    (a, _), (_, public_b) = pair(), pair()
    made = {
        agreed(a, public_b, session, purpose, *names)
        for session in (SESSION, b"t" * 32)
        for purpose in (SEAL, MASK)
        for names in (("a", "b"), ("b", "a"))
    }
    assert len(made) == 8
    assert own_mask(a, SESSION) != own_mask(a, b"t" * 32)


def test_a_parcel_opens_for_its_receiver_in_its_session_alone() -> None:
    key = new_private()
    sealed = seal(key, b"shares", SESSION)
    assert unseal(key, sealed, SESSION) == b"shares"
    assert len(sealed) == len(b"shares") + 28
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for wrong in ((new_private(), sealed, SESSION), (key, flipped, SESSION), (key, sealed, b"t" * 32), (key, b"", SESSION)):  # fmt: skip
        with pytest.raises(KeyProblem, match="parcel: expected one that was sealed for this hospital"):
            unseal(*wrong)


@pytest.mark.parametrize("public", [bytes(32), b"short", (1).to_bytes(32, "little")], ids=["zero", "short", "one"])
def test_a_public_key_that_would_give_no_secret_is_refused(public: bytes) -> None:
    with pytest.raises(KeyProblem, match="public key: expected 32 bytes of a point"):
        agreed(new_private(), public, SESSION, MASK, "a", "b")
