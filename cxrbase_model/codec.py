"""How a state or an update is packed for the wire and for the disk: safetensors, which holds tensors and nothing that runs.

On the wire a plan may ask for fewer bits (`Packing`): bfloat16, or int8 with one float32 scale for each row of a matrix. Both sides
work with what unpacking gives, and its digest is what they compare. zstd goes over the bytes of all numbers sorted by significance,
since sign and exponent repeat and the last bits of a number do not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cxrbase_model.state import State, size
from cxrbase_model.transport import Packing

_SCALE = "scale:"  # before the name of the tensor whose rows it scales; no parameter's name has a colon
_STEPS = 127
_LENGTH = struct.Struct("<Q")  # in front of compressed bytes: how many they become
_LEVEL = 1  # zstd's higher levels gain nothing on weights
_WIDTHS = {"float32": 4, "bf16": 2, "int8": 1}  # bytes of a number
_HEADER_ROOM = 16 << 20  # bytes that names and shapes may take


class CodecError(ValueError):
    """Packed bytes do not hold a state."""


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a state; the same state gives the same bytes."""
    return safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})


def unpack(data: bytes) -> State:
    """The state of packed bytes; CodecError where they hold none."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError):
        raise CodecError(f"expected the bytes of a packed state, found {len(data)} bytes of something else") from None


def encode(state: Mapping[str, Tensor], packing: Packing) -> bytes:
    """The bytes of a float32 state as a plan wants them on the wire; the same state gives the same bytes."""
    if packing.precision == "bf16":
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
    elif packing.precision == "int8":
        state = _to_int8(state)
    data = pack(state)
    return _compressed(data, packing) if packing.compress == "zstd" else data


def decode(data: bytes, packing: Packing, parameters: int) -> State:
    """The float32 state of encoded bytes, of at most so many parameters; CodecError where they hold none of that packing."""
    if packing.compress == "zstd":
        data = _decompressed(data, packing, 5 * parameters + _HEADER_ROOM)
    state = unpack(data)
    if packing.precision == "bf16":
        return _from_bf16(state)
    return _from_int8(state) if packing.precision == "int8" else state


def sent(state: State, packing: Packing) -> tuple[bytes, State]:
    """The bytes that leave for a state, and the state that everybody has who gets them."""
    data = encode(state, packing)
    return data, state if packing.is_exact else decode(data, packing, size(state))


def _to_int8(state: Mapping[str, Tensor]) -> State:
    """Each row over its largest magnitude, in whole steps of 1/127 of it; a vector is one row. Not finite in, not finite out."""
    packed: State = {}
    for name, tensor in state.items():
        rows = _rows(tensor)
        scale = rows.abs().amax(dim=1, keepdim=True) / _STEPS if rows.numel() else rows.new_zeros(len(rows), 1)
        steps = (rows / scale).nan_to_num(0.0).round().clamp(-_STEPS, _STEPS)  # NaN where a row is all zeros
        packed[name] = steps.to(torch.int8).reshape(tensor.shape)
        packed[_SCALE + name] = scale.flatten()
    return packed


def _from_int8(packed: State) -> State:
    state: State = {}
    for name, steps in packed.items():
        if name.startswith(_SCALE):
            continue
        rows, scale = _rows(steps), packed.get(_SCALE + name)
        if scale is None or scale.shape != rows.shape[:1] or (steps.dtype, scale.dtype) != (torch.int8, torch.float32):
            raise CodecError("expected int8 tensors, each with a float32 scale for its rows")
        state[name] = (rows.float() * scale[:, None]).reshape(steps.shape)
    if len(packed) != 2 * len(state):
        raise CodecError("expected a tensor for each scale")
    return state


def _rows(tensor: Tensor) -> Tensor:
    """A tensor as a matrix of rows [R, C]."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)


def _from_bf16(state: State) -> State:
    if any(tensor.dtype != torch.bfloat16 for tensor in state.values()):
        raise CodecError("expected bfloat16 tensors")
    return {name: tensor.float() for name, tensor in state.items()}


def _compressed(data: bytes, packing: Packing) -> bytes:
    from imagecodecs import zstd_encode  # imported here: only this choice needs it

    return _LENGTH.pack(len(data)) + bytes(
        zstd_encode(_by_significance(data, _WIDTHS[packing.precision]), level=_LEVEL)
    )


def _decompressed(data: bytes, packing: Packing, most: int) -> bytes:
    """The bytes that were compressed; CodecError where they would be more than `most`, before memory is taken for them."""
    from imagecodecs import ZstdError, zstd_decode

    length = _LENGTH.unpack_from(data)[0] if len(data) > _LENGTH.size else most + 1
    if length > most:
        raise CodecError(f"expected at most {most} bytes in {len(data)} compressed ones")
    try:
        plain = bytes(zstd_decode(data[_LENGTH.size :], out=length))
    except ZstdError:
        raise CodecError(f"expected zstd, found {len(data)} bytes of something else") from None
    if len(plain) != length:
        raise CodecError(f"expected {length} bytes, found {len(plain)}")
    return _in_order(plain, _WIDTHS[packing.precision])


def _by_significance(data: bytes, width: int) -> bytes:
    """All first bytes of numbers that are `width` bytes wide, then all second ones; what is left at the end stays there."""
    whole = len(data) - len(data) % width
    return np.frombuffer(data, np.uint8, whole).reshape(-1, width).T.tobytes() + data[whole:]


def _in_order(data: bytes, width: int) -> bytes:
    """The inverse of `_by_significance`."""
    whole = len(data) - len(data) % width
    return np.frombuffer(data, np.uint8, whole).reshape(width, -1).T.tobytes() + data[whole:]
