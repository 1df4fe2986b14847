"""Reading tensors that `codec.parts` wrote, one at a time: all bytes and all tensors are never in memory together."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cxrbase_model.codec import DTYPES, HEADER_ROOM, LENGTH, CodecError, memory_of
from cxrbase_model.state import State

_KINDS = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its first byte in the file, after which are as many as its dtype and shape need."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def load(path: Path) -> State:
    """The state of a file; CodecError where it holds none, OSError where it cannot be read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return {name: _read(file, place, size) for name, place in places(file, size).items()}


def places(file: BinaryIO, size: int) -> dict[str, Place]:
    """Where the tensors of a file of so many bytes are, each within it; CodecError where it holds none. The bytes may be anybody's."""
    try:
        (length,) = LENGTH.unpack(file.read(LENGTH.size).ljust(LENGTH.size))
        if length > min(size - LENGTH.size, HEADER_ROOM):
            raise ValueError
        header = json.loads(file.read(length))
        return {name: _place(entry, LENGTH.size + length, size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _another(size) from None


def _place(entry: Any, body: int, size: int) -> Place:
    """ValueError, KeyError or TypeError where the file does not hold all of it."""
    dtype, shape, (start, end) = _KINDS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (start, end, *shape)):
        raise ValueError
    if end > size - body or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return Place(dtype, shape, body + start)


def _read(file: BinaryIO, place: Place, size: int) -> Tensor:
    flat = torch.empty(math.prod(place.shape), dtype=place.dtype)
    file.seek(place.start)
    if file.readinto(memory_of(flat)) != flat.nbytes:  # type: ignore[attr-defined]  # all files of bytes have it
        raise _another(size)
    return flat.reshape(place.shape)


def _another(size: int) -> CodecError:
    return CodecError(f"expected a file of tensors, found {size} bytes of something else")
