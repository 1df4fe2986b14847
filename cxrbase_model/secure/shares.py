"""Shamir's secret sharing (1979) over GF(2^128) by PyCryptodome: any `needed` shares give the secret, fewer tell nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from Crypto.Protocol.SecretSharing import Shamir

_BLOCK = 16  # bytes of a secret that the field holds


def split(secret: bytes, needed: int, count: int) -> list[bytes]:
    """`count` shares, each as long as the secret, of which `needed` give it back; the secret's length is a multiple of 16 bytes."""
    if not 2 <= needed <= count or len(secret) % _BLOCK or not secret:
        raise ValueError(f"shares: expected 2 to {count} needed of whole blocks, found {needed} of {len(secret)} bytes")
    blocks = [Shamir.split(needed, count, secret[at : at + _BLOCK], False) for at in range(0, len(secret), _BLOCK)]
    return [b"".join(block[index][1] for block in blocks) for index in range(count)]


def combine(shares: Mapping[int, bytes], needed: int) -> bytes:
    """The secret of at least `needed` shares by their place, from 0, in what `split` gave; ValueError where they are too few or unlike.

    Shares that were changed give another secret: whoever combines has to compare it with a digest or a public key.
    """
    if len(shares) < needed:
        raise ValueError(f"shares: expected at least {needed}, found {len(shares)}")
    chosen = dict(sorted(shares.items())[:needed])
    lengths = {len(share) for share in chosen.values()}
    if len(lengths) != 1 or (length := lengths.pop()) % _BLOCK:
        raise ValueError("shares: expected shares of one length, in whole blocks")
    parts = [
        Shamir.combine([(place + 1, share[at : at + _BLOCK]) for place, share in chosen.items()], False)
        for at in range(0, length, _BLOCK)
    ]
    return b"".join(parts)


def recover(shares: Mapping[int, bytes], needed: int, fits: Callable[[bytes], bool]) -> bytes | None:
    """As `combine`, of shares of which one may be wrong: the secret that fits, None where none is found.

    Runs of `needed` neighbours are tried, so that one wrong share among more than `needed`, or several side by side, do no harm.
    """
    places = sorted(shares)
    if len(places) < needed:
        return None
    for first in range(len(places)):
        chosen = {place: shares[place] for place in (places + places)[first : first + needed]}
        secret = combine(chosen, needed)
        if fits(secret):
            return secret
    return None
