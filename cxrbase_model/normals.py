"""Random numbers for privacy: an AES-256-CTR keystream keyed by the operating system, and normal numbers made of it.

A seeded source repeats its numbers; whoever knows the seed can take the noise off again, so it is for simulations alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_SUMMED = (
    4  # normals in each number, so that the grid of one float64 cannot be told from it (arXiv 2107.10138, as Opacus)
)
_PAIRS = 1 << 14  # numbers at a time stay in a core's cache
_BITS = 2**53 - 1
_GRID = 20  # binary digits of the noise's deviation that are kept where noise is added


class NoiseSource:
    """Uniform and normal float64 numbers on the CPU. `seeded` says whether they can be repeated."""

    def __init__(self, seed: int | None = None) -> None:
        self.seeded = seed is not None
        key = os.urandom(32) if seed is None else hashlib.sha256(f"noise {seed}".encode()).digest()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def seed(self) -> int:
        """A number in [0, 2**63) to seed another generator with."""
        return int.from_bytes(self._stream.update(bytes(8)), "big") >> 1

    def uniform(self, count: int) -> Tensor:
        """`count` numbers in [0, 1), multiples of 2**-53."""
        if count == 0:
            return torch.empty(0, dtype=torch.float64)
        drawn = torch.frombuffer(bytearray(self._stream.update(bytes(8 * count))), dtype=torch.int64)
        return (drawn & _BITS).double() * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """`count` standard normal numbers by Box and Muller; floating point stays a caveat (Mironov 2012, CCS)."""
        return self._box_muller(_SUMMED * count).reshape(_SUMMED, count).sum(dim=0) / math.sqrt(_SUMMED)

    def noised(self, values: Tensor, deviation: float) -> Tensor:
        """Numbers of any shape, on the CPU, with normal noise added, float64, rounded to a grid that does not depend on them.

        The grid has steps of 2**-20 of the deviation (rounded down to a power of two). Each of its points can be met by every
        value, and by so many of the float64 that Box and Muller's method makes that which one it was is not seen (the attack of
        Mironov 2012, CCS); rounding what has noise on it costs no privacy.
        """
        if not 0 < deviation < math.inf:
            raise ValueError(f"deviation: expected a positive number, found {deviation}")
        step = 2.0 ** (math.floor(math.log2(deviation)) - _GRID)
        found = self._box_muller(values.numel()).mul_(deviation).reshape(values.shape)
        return found.add_(values).div_(step).round_().mul_(step)

    def _box_muller(self, count: int) -> Tensor:
        """`count` standard normal numbers, as many at a time as a core's cache holds."""
        found = torch.empty(count + count % 2, dtype=torch.float64)
        for start in range(0, len(found), 2 * _PAIRS):
            _normal(self._stream, found[start : start + 2 * _PAIRS])
        return found[:count]


def _normal(stream: Any, out: Tensor) -> None:
    """Fill an even number of places: radius and angle from 53 random bits each."""
    half = len(out) // 2
    drawn = bytearray(8 * len(out) + 15)  # room that the cipher wants
    stream.update_into(bytes(8 * len(out)), drawn)
    uniform = (torch.frombuffer(drawn, dtype=torch.int64, count=len(out)) & _BITS).double()
    radius = torch.log1p(uniform[:half].mul_(-(2.0**-53))).mul_(-2).sqrt_()
    angle = uniform[half:].mul_(2 * math.pi * 2.0**-53)
    torch.mul(radius, angle.cos(), out=out[:half])
    torch.mul(radius, angle.sin(), out=out[half:])
