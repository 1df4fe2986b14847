"""zstd over the bytes of all numbers sorted by significance, since sign and exponent repeat and the last bits of a number do not."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("<Q")  # in front of compressed bytes: how many they become
_LEVEL = 1  # zstd's higher levels gain nothing on weights


class CompressionError(ValueError):
    """Bytes are not what `compressed` gives, or would become too many."""


def compressed(parts: Iterable[bytes | memoryview], size: int, width: int) -> bytes:
    """The bytes of all parts, compressed, their number in front.

    size: of all parts together. width: bytes of each of their numbers; each part is of whole numbers.
    """
    from imagecodecs import zstd_encode  # imported here: only this choice needs it

    sorted_bytes: Any = _by_significance(parts, size, width)  # any buffer will do, whatever its types say
    packed = zstd_encode(sorted_bytes, level=_LEVEL)
    del sorted_bytes
    return b"".join((_LENGTH.pack(size), packed))


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
    if len(plain) != length or length % width:
        raise CompressionError(f"expected {length} bytes of whole numbers, found {len(plain)}")
    return _in_order(plain, width)


def _by_significance(parts: Iterable[bytes | memoryview], size: int, width: int) -> NDArray[np.uint8]:
    """All first bytes of numbers that are `width` bytes wide, then all second ones [W, N]."""
    planes, start = np.empty((width, size // width), np.uint8), 0
    for part in parts:
        end = start + len(part) // width
        planes[:, start:end] = np.frombuffer(part, np.uint8).reshape(-1, width).T
        start = end
    return planes


def _in_order(data: bytes, width: int) -> bytes:
    """The inverse of `_by_significance`."""
    return data if width == 1 else np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()
