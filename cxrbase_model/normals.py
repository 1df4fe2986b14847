"""Random numbers for privacy: an AES-256-CTR keystream keyed by the operating system, and normal numbers made of it.

A seeded source repeats its numbers; whoever knows the seed can take the noise off again, so it is for simulations alone.
"""

from __future__ import annotations

import hashlib
import math
import os

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_SUMMED = (
    4  # normals in each number, so that the grid of one float64 cannot be told from it (arXiv 2107.10138, as Opacus)
)


class NoiseSource:
    """Uniform and normal float64 numbers on the CPU. `seeded` says whether they can be repeated."""

    def __init__(self, seed: int | None = None) -> None:
        self.seeded = seed is not None
        key = os.urandom(32) if seed is None else hashlib.sha256(f"noise {seed}".encode()).digest()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> Tensor:
        """`count` numbers in [0, 1), multiples of 2**-53."""
        if count == 0:
            return torch.empty(0, dtype=torch.float64)
        drawn = torch.frombuffer(bytearray(self._stream.update(bytes(8 * count))), dtype=torch.int64)
        return (drawn & (2**53 - 1)).double() * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """`count` standard normal numbers by Box and Muller; floating point stays a caveat (Mironov 2012, CCS)."""
        half = -(-_SUMMED * count // 2)
        radius = (-2 * torch.log1p(-self.uniform(half))).sqrt()
        angle = 2 * math.pi * self.uniform(half)
        both = torch.stack([radius * angle.cos(), radius * angle.sin()])
        return both.flatten()[: _SUMMED * count].reshape(_SUMMED, count).sum(dim=0) / math.sqrt(_SUMMED)
