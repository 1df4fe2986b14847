"""Random numbers for privacy: an AES-256-CTR keystream keyed by the operating system, and normal numbers made of it.

A seeded source repeats its numbers; whoever knows the seed can take the noise off again, so it is for simulations alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_SUMMED = (
    4  # normals in each number, so that the grid of one float64 cannot be told from it (arXiv 2107.10138, as Opacus)
)
_PART, _GROUP = (
    1 << 15,
    8,
)  # numbers that stay in a core's cache (and on one thread of torch); parts that a thread takes at once
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
        found = torch.empty(_SUMMED * count, dtype=torch.float64)
        self._each(found, lambda out, normal: out.copy_(normal))
        return found.reshape(_SUMMED, count).sum(dim=0) / math.sqrt(_SUMMED)

    def add_to(self, values: Tensor, deviation: float) -> None:
        """Add normal noise to contiguous numbers on the CPU, in float64, and round to a grid that does not depend on them.

        The grid has steps of 2**-20 of the deviation (rounded down to a power of two). Each of its points can be met by every
        value, and by so many of the float64 that Box and Muller's method makes that which one it was is not seen (the attack of
        Mironov 2012, CCS); rounding what has noise on it costs no privacy.
        """
        if not 0 < deviation < math.inf:
            raise ValueError(f"deviation: expected a positive number, found {deviation}")
        step = 2.0 ** (math.floor(math.log2(deviation)) - _GRID)

        def add(out: Tensor, normal: Tensor) -> None:
            out.copy_(normal.mul_(deviation).add_(out).mul_(1 / step).round_().mul_(step))

        self._each(values.view(-1), add)

    def _each(self, out: Tensor, finish: Callable[[Tensor, Tensor], object]) -> None:
        """Give `finish` each part of a row of numbers with as many standard normal ones, on as many threads as torch has.

        Random bits are drawn in order, so the threads change nothing.
        """
        parts = torch.split(out, _PART)
        groups = [parts[start : start + _GROUP] for start in range(0, len(parts), _GROUP)]
        if torch.get_num_threads() == 1 or len(groups) == 1:
            for group in groups:
                _finish(group, self._bits(group), finish)
            return
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="noise") as pool:
            work = [pool.submit(_finish, group, self._bits(group), finish) for group in groups]
            for each in work:
                each.result()

    def _bits(self, group: Sequence[Tensor]) -> bytes:
        """Random bits for the numbers of a group, 64 each, and for one more where a part is odd."""
        return self._stream.update(bytes(8 * sum(_even(part) for part in group)))


def _finish(group: Sequence[Tensor], bits: bytes, finish: Callable[[Tensor, Tensor], object]) -> None:
    drawn = torch.frombuffer(bytearray(bits), dtype=torch.int64)
    for part, words in zip(group, torch.split(drawn, [_even(part) for part in group]), strict=True):
        finish(part, _box_muller(words)[: len(part)])


def _even(part: Tensor) -> int:
    return len(part) + len(part) % 2


def _box_muller(words: Tensor) -> Tensor:
    """Standard normal numbers, as many as random words: a radius and an angle of 53 bits for each two."""
    half = len(words) // 2
    uniform = words.bitwise_and(_BITS).double()
    radius = uniform[:half].mul_(-(2.0**-53)).log1p_().mul_(-2).sqrt_()
    angle = uniform[half:].mul_(2 * math.pi * 2.0**-53)
    sine = angle.sin().mul_(radius)
    return torch.cat([angle.cos_().mul_(radius), sine])
