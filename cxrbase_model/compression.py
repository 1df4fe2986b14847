"""zstd over the bytes of all numbers sorted by significance, since sign and exponent repeat and the last bits of a number do not."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<Q")  # in front of compressed bytes: how many they become
_LEVEL = 1  # zstd's higher levels gain nothing on weights


class CompressionError(ValueError):
    """Bytes are not what `compressed` gives, or would become too many."""


def compressed(data: bytes, width: int) -> bytes:
    """The bytes, compressed, their number in front; `width`: bytes of each of the numbers that they mostly are."""
    from imagecodecs import zstd_encode  # imported here: only this choice needs it

    packed = zstd_encode(_by_significance(data, width), level=_LEVEL)
    return b"".join((_LENGTH.pack(len(data)), packed))


def decompressed(data: bytes, width: int, most: int) -> bytes:
    """The bytes that were compressed; CompressionError where they would be more than `most`, before memory is taken for them."""
    from imagecodecs import ZstdError, zstd_decode

    length = _LENGTH.unpack_from(data)[0] if len(data) > _LENGTH.size else most + 1
    if length > most:
        raise CompressionError(f"expected at most {most} bytes in {len(data)} compressed ones")
    try:
        body: Any = memoryview(data)[_LENGTH.size :]  # any buffer will do, whatever its types say
        plain = bytes(zstd_decode(body, out=length))
    except ZstdError:
        raise CompressionError(f"expected zstd, found {len(data)} bytes of something else") from None
    if len(plain) != length:
        raise CompressionError(f"expected {length} bytes, found {len(plain)}")
    return _in_order(plain, width)


def _by_significance(data: bytes, width: int) -> bytes:
    """All first bytes of numbers that are `width` bytes wide, then all second ones; what is left at the end stays there."""
    return data if width == 1 else _transposed(data, width, (-1, width))


def _in_order(data: bytes, width: int) -> bytes:
    """The inverse of `_by_significance`."""
    return data if width == 1 else _transposed(data, width, (width, -1))


def _transposed(data: bytes, width: int, shape: tuple[int, int]) -> bytes:
    whole = len(data) - len(data) % width
    turned = np.frombuffer(data, np.uint8, whole).reshape(shape).T.tobytes()
    return turned + data[whole:] if whole < len(data) else turned
