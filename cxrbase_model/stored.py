"""Reading a file of tensors that `codec.parts` wrote, a tensor at a time: the whole file and its tensors are never in memory together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrbase_model.codec import DTYPES, LENGTH, CodecError, memory_of
from cxrbase_model.state import State

_KINDS = {name: dtype for dtype, name in DTYPES.items()}


def load(path: Path) -> State:
    """The state of a file; CodecError where it holds none, OSError where it cannot be read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header, body = _header(file, size)
            return {name: _read(file, body, size, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CodecError(f"expected a file of tensors, found {size} bytes of something else") from None


def _header(file: BufferedReader, size: int) -> tuple[Mapping[str, Any], int]:
    """What is said of each tensor, and where the numbers begin."""
    (length,) = LENGTH.unpack(file.read(LENGTH.size).ljust(LENGTH.size))
    if length > size - LENGTH.size:
        raise ValueError
    header: Mapping[str, Any] = json.loads(file.read(length))
    return header, LENGTH.size + length


def _read(file: BufferedReader, body: int, size: int, entry: Mapping[str, Any]) -> Tensor:
    """A tensor; ValueError where the file does not hold all of it."""
    dtype, (start, end) = _KINDS[entry["dtype"]], entry["data_offsets"]
    count = math.prod(entry["shape"])
    if not 0 <= start <= end <= size - body or end - start != count * dtype.itemsize:
        raise ValueError
    flat = torch.empty(count, dtype=dtype)
    file.seek(body + start)
    if file.readinto(memory_of(flat)) != end - start:
        raise ValueError
    return flat.reshape(entry["shape"])
