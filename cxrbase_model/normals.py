"""Random numbers for privacy: an AES-256-CTR keystream keyed by the operating system, and normal numbers made of it.

A seeded source repeats its numbers; whoever knows the seed can take the noise off again, so it is for simulations alone.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

_SUMMED = (
    4  # normals in each number, so that the grid of one float64 cannot be told from it (arXiv 2107.10138, as Opacus)
)
_PART = 1 << 15  # numbers that stay in a core's cache; even, so that each part but the last is of whole blocks
_BLOCK = 16  # bytes of AES's, two words of 64 bits
_BITS = 2**53 - 1
_GRID = 20  # binary digits of the noise's deviation that are kept where noise is added
_ZEROS = memoryview(bytes(8 * _PART))  # what is encrypted: the keystream itself comes out

Numbers = NDArray[Any]
Finish = Callable[[Numbers, NDArray[np.float64]], object]


class NoiseSource:
    """Uniform and normal float64 numbers on the CPU. `seeded` says whether they can be repeated.

    It can be neither copied nor sent to another process, which would draw the same noise (TypeError).
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seeded = seed is not None
        self._key = os.urandom(32) if seed is None else hashlib.sha256(f"noise {seed}".encode()).digest()
        self._block, self._lock = 0, Lock()  # the next one of the keystream: none is ever used twice

    def __reduce__(self) -> str:
        """Refuse to be copied or pickled."""
        raise TypeError("a NoiseSource cannot be copied: its numbers would be drawn twice")

    def seed(self) -> int:
        """A number in [0, 2**63) to seed another generator with."""
        return int(self._words(1)[0]) & (2**63 - 1)

    def uniform(self, count: int) -> Tensor:
        """`count` numbers in [0, 1), multiples of 2**-53."""
        return torch.from_numpy((self._words(count) & _BITS) * 2.0**-53)

    def normal(self, count: int) -> Tensor:
        """`count` standard normal numbers by Box and Muller; floating point stays a caveat (Mironov 2012, CCS)."""
        found = np.empty(_SUMMED * count)
        self._each(found, np.copyto)
        return torch.from_numpy(found.reshape(_SUMMED, count).sum(axis=0) / math.sqrt(_SUMMED))

    def add_to(self, values: Tensor, deviation: float, divisor: float = 1.0) -> None:
        """Add normal noise to contiguous numbers on the CPU, in float64, round to a grid that does not depend on them, and divide.

        The grid has steps of 2**-20 of the deviation (rounded down to a power of two). Each of its points can be met by every
        value, and by so many of the float64 that Box and Muller's method makes that which one it was is not seen (the attack of
        Mironov 2012, CCS); rounding what has noise on it, and dividing what is rounded, costs no privacy.
        """
        if not 0 < deviation < math.inf:
            raise ValueError(f"deviation: expected a positive number, found {deviation}")
        step = 2.0 ** (math.floor(math.log2(deviation)) - _GRID)

        def add(out: Numbers, normal: NDArray[np.float64]) -> None:
            normal *= deviation
            normal += out
            normal *= 1 / step
            np.rint(normal, out=normal)
            np.multiply(normal, step / divisor, out=out, casting="same_kind")

        self._each(values.view(-1).numpy(), add)

    def _each(self, out: Numbers, finish: Finish) -> None:
        """Give `finish` each part of a row of numbers with as many standard normal ones, on as many threads as torch has.

        Each part has its own blocks of the keystream, so the threads change nothing.
        """
        first = self._take(len(out))
        parts = [out[start : start + _PART] for start in range(0, len(out), _PART)]
        share = -(-len(parts) // torch.get_num_threads()) or 1
        runs = [(start, parts[start : start + share]) for start in range(0, len(parts), share)]
        if len(runs) < 2:
            for _, run in runs:
                _finish(self._stream(first), run, finish)
            return
        with ThreadPoolExecutor(len(runs), thread_name_prefix="noise") as pool:
            work = [
                pool.submit(_finish, self._stream(first + start * _blocks(_PART)), run, finish) for start, run in runs
            ]
            for each in work:
                each.result()

    def _words(self, count: int) -> NDArray[np.uint64]:
        """So many random words of 64 bits."""
        return np.frombuffer(self._stream(self._take(count)).update(bytes(8 * count)), dtype="<u8")

    def _take(self, words: int) -> int:
        """The first of the blocks that so many words are drawn from, by nobody else."""
        with self._lock:
            first, self._block = self._block, self._block + _blocks(words)
        return first

    def _stream(self, block: int) -> CipherContext:
        """The keystream from one of its blocks on (NIST SP 800-38A, 6.5)."""
        return Cipher(algorithms.AES(self._key), modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()


def _blocks(words: int) -> int:
    return -(-8 * words // _BLOCK)


def _finish(stream: CipherContext, parts: Sequence[Numbers], finish: Finish) -> None:
    """Normal numbers for one part after the other; their room is used again, since new memory costs as much as they do."""
    most = len(parts[0]) + len(parts[0]) % 2
    drawn = bytearray(8 * most + _BLOCK - 1)  # as `update_into` wants it
    words = np.frombuffer(drawn, dtype="<i8", count=most)
    numbers, spare = np.empty(most), np.empty(most // 2)
    for part in parts:
        count = len(part) + len(part) % 2
        stream.update_into(_ZEROS[: 8 * count], drawn)
        np.bitwise_and(words[:count], _BITS, out=words[:count])
        np.copyto(numbers[:count], words[:count], casting="unsafe")
        _box_muller(numbers[:count], spare[: count // 2])
        finish(part, numbers[: len(part)])


def _box_muller(numbers: NDArray[np.float64], spare: NDArray[np.float64]) -> None:
    """Random integers of 53 bits, an even number of them, into standard normal numbers: a radius r and an angle for each two.

    Cosine and sine of the angle a come from t = tan(a / 2), which numpy computes several at a time and those two one by one:
    r cos a = 2 r / (1 + t t) - r and r sin a = 2 r t / (1 + t t). No angle of 53 bits meets the pole, where t would be infinite.
    """
    radius, tangent = np.split(numbers, 2)
    radius *= -(2.0**-53)
    np.log1p(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    tangent *= math.pi * 2.0**-53
    np.tan(tangent, out=tangent)
    np.multiply(tangent, tangent, out=spare)
    spare += 1
    np.divide(radius, spare, out=spare)
    spare *= 2
    tangent *= spare
    np.subtract(spare, radius, out=radius)
