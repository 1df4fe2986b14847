"""Enough shares give a secret, one fewer none, and a wrong one is found out."""

from __future__ import annotations

import itertools
import os

import pytest

from cxrbase_model.secure.shares import combine, recover, split


def test_any_shares_that_are_enough_give_the_secret() -> None:
    secret = os.urandom(32)
    shares = split(secret, 3, 5)
    assert all(len(share) == 32 for share in shares)
    for places in itertools.combinations(range(5), 3):
        assert combine({place: shares[place] for place in places}, 3) == secret
    assert combine(dict(enumerate(shares)), 3) == secret


def test_one_share_fewer_fits_every_secret() -> None:
    """For any other secret there is a last share that makes it: two of three tell nothing."""
    ours, other = split(b"a" * 16, 3, 5), os.urandom(16)
    with pytest.raises(ValueError, match="expected at least 3, found 2"):
        combine({0: ours[0], 1: ours[1]}, 3)
    wanted = int.from_bytes(other, "big") ^ int.from_bytes(combine({0: ours[0], 1: ours[1], 2: bytes(16)}, 3), "big")
    weight = int.from_bytes(combine({0: bytes(16), 1: bytes(16), 2: (1).to_bytes(16, "big")}, 3), "big")
    last = _divided(wanted, weight).to_bytes(16, "big")
    assert combine({0: ours[0], 1: ours[1], 2: last}, 3) == other


def _divided(wanted: int, by: int) -> int:
    """The x of x * by = wanted in GF(2^128)."""
    inverse, base, exponent = 1, by, 2**128 - 2  # a to that power is its inverse
    while exponent:
        inverse = _times(inverse, base) if exponent & 1 else inverse
        base, exponent = _times(base, base), exponent >> 1
    return _times(wanted, inverse)


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(128):
        product ^= (a << bit) if b >> bit & 1 else 0
    for bit in range(255, 127, -1):
        product ^= (1 << bit | 0x87 << bit - 128) if product >> bit & 1 else 0
    return product


@pytest.mark.parametrize(
    ("needed", "count", "secret"), [(1, 3, b"a" * 16), (4, 3, b"a" * 16), (2, 3, b"a" * 15), (2, 3, b"")]
)
def test_what_cannot_be_shared_is_refused(needed: int, count: int, secret: bytes) -> None:
    with pytest.raises(ValueError, match="shares: expected 2 to"):
        split(secret, needed, count)


def test_shares_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        combine({0: b"a" * 16, 1: b"b" * 32}, 2)


def test_a_wrong_share_among_more_than_are_needed_does_no_harm() -> None:
    secret = os.urandom(32)
    for wrong in range(4):
        shares = dict(enumerate(split(secret, 3, 4)))
        shares[wrong] = os.urandom(32)
        assert recover(shares, 3, lambda found: found == secret) == secret
        del shares[(wrong + 1) % 4]
        assert recover(shares, 3, lambda found: found == secret) is None
    assert recover({0: secret, 1: secret}, 3, lambda found: True) is None
