"""The bits of numbers as whole numbers that are small where little has changed, and the bytes of these by significance.

Of a float the magnitude's bits are subtracted and the signs compared, so that a weight which crosses zero has not changed by much. All is
done in place, a part at a time that stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[Any]  # unsigned, as wide as the number
Planes = NDArray[np.uint8]  # [W, N]: the lowest bytes of N numbers that are W bytes wide, and so on to the highest

_PART = 1 << 15  # numbers
_SIGNED = {4: torch.int32, 2: torch.int16, 1: torch.int8}
_UNSIGNED: dict[int, type[np.unsignedinteger[Any]]] = {4: np.uint32, 2: np.uint16, 1: np.uint8}


def bits(piece: Tensor) -> Bits:
    """The numbers of a tensor, row by row, as whole numbers of the same bits."""
    width = piece.element_size()
    flat: Bits = piece.contiguous().view(_SIGNED[width]).numpy().reshape(-1)
    return flat.view(_UNSIGNED[width])


def planes(piece: Tensor, before: Tensor | None) -> Planes:
    """The bytes of what has changed from `before`, of the same dtype and number of elements; None counts as zeros."""
    new, old = bits(piece), None if before is None else bits(before)
    found = np.empty((new.itemsize, len(new)), np.uint8)
    for part, (code, spare, zeros) in _parts(new):
        before_it = zeros if old is None else old[part]
        if piece.dtype == torch.int8:
            _zigzag(new[part], before_it, code, spare)
        else:
            _code(new[part], before_it, code, spare)
        for plane in found:
            np.copyto(plane[part], code, casting="unsafe")  # the lowest byte of each
            if code.itemsize > 1:
                code >>= code.dtype.type(8)
    return found


def whole(found: Planes, before: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The tensor [N] of a dtype whose change from `before` has these bytes."""
    width, count = found.shape
    new = np.empty(count, _UNSIGNED[width])
    old = None if before is None else bits(before)
    for part, (code, spare, zeros) in _parts(new):
        number = new[part]
        np.copyto(number, found[-1, part])
        for plane in found[-2::-1]:
            number <<= number.dtype.type(8)
            number |= plane[part]
        before_it = zeros if old is None else old[part]
        if dtype == torch.int8:
            _unzigzag(number, before_it, spare)
        else:
            _decode(number, before_it, code, spare)
    return torch.from_numpy(new.view(f"i{width}")).view(dtype)


def _parts(like: Bits) -> Iterator[tuple[slice, tuple[Bits, Bits, Bits]]]:
    """Places in a vector, and room for as many numbers: twice for whatever is needed, and zeros."""
    first, second, zeros = (np.zeros(min(_PART, len(like)), like.dtype) for _ in range(3))
    for start in range(0, len(like), _PART):
        count = min(_PART, len(like) - start)
        yield slice(start, start + count), (first[:count], second[:count], zeros[:count])


def _code(new: Bits, old: Bits, into: Bits, spare: Bits) -> None:
    """Floats: the change of the magnitude as 0, -1, 1, -2, ... to 0, 1, 2, 3, ..., and in the lowest bit whether the sign has changed."""
    one, top = into.dtype.type(1), into.dtype.type(8 * into.itemsize - 1)
    np.subtract(new, old, out=into)
    into <<= one  # the sign leaves, and magnitudes wrap around
    _spread_sign(into, spare)
    into ^= spare
    into <<= one
    np.bitwise_xor(new, old, out=spare)
    spare >>= top
    into |= spare


def _decode(number: Bits, old: Bits, sign: Bits, spare: Bits) -> None:
    """The inverse of `_code`, in place."""
    one, top = number.dtype.type(1), number.dtype.type(8 * number.itemsize - 1)
    np.right_shift(old, top, out=sign)
    sign ^= number
    sign <<= top
    number >>= one
    _unzigzag(number, old, spare)
    number <<= one
    number >>= one
    number |= sign


def _zigzag(new: Bits, old: Bits, into: Bits, spare: Bits) -> None:
    """Whole numbers: the change in two's complement, 0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    np.subtract(new, old, out=into)
    _spread_sign(into, spare)
    into <<= into.dtype.type(1)
    into ^= spare


def _unzigzag(number: Bits, old: Bits, spare: Bits) -> None:
    """The inverse of `_zigzag`, in place, with the sign in all bits beyond those that were coded."""
    one = number.dtype.type(1)
    np.bitwise_and(number, one, out=spare)
    np.negative(spare, out=spare)
    number >>= one
    number ^= spare
    number += old


def _spread_sign(number: Bits, into: Bits) -> None:
    """All ones where the highest bit is set, else all zeros."""
    signed = np.dtype(f"i{number.itemsize}")
    np.right_shift(number.view(signed), signed.type(8 * number.itemsize - 1), out=into.view(signed))
