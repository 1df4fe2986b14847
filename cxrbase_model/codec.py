"""How a state or an update is packed for the wire and for the disk: safetensors, which holds tensors and nothing that runs.

On the wire a plan may ask for fewer bits (`Packing`): bfloat16, int8 with one float32 scale for each row of a matrix, or
of updates the largest numbers alone (`sparse`), and zstd over the bytes (`compression`). Both sides
work with what unpacking gives, and its digest is what they compare.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cxrbase_model import sparse
from cxrbase_model.compression import CompressionError, compressed, decompressed
from cxrbase_model.quantize import halved, quantized, restored, rows_of
from cxrbase_model.state import State
from cxrbase_model.transport import SPARSE, Packing

SCALE = "scale:"  # before the name of the tensor whose rows it scales; no parameter's name has a colon
LENGTH = struct.Struct("<Q")  # of the header, in front of it
_WIDTHS = {"float32": 4, "bf16": 2, "int8": 1, SPARSE: 2}  # bytes of a number
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip  # safetensors' names
HEADER_ROOM = 16 << 20  # bytes that names and shapes may take


class CodecError(ValueError):
    """Packed bytes do not hold a state."""


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a state; the same state gives the same bytes."""
    return b"".join(parts(state))


def parts(state: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `pack`, a tensor at a time and without a copy: safetensors' own function would hold two of the whole.

    The tensors are asked for twice, and not kept.
    """
    header, names, _ = _layout(state)
    yield header
    yield from (_bytes_of(state[name]) for name in names)


def _layout(state: Mapping[str, Tensor]) -> tuple[bytes, list[str], int]:
    """What comes before the numbers, the names in the order of their numbers, and the bytes of all."""
    kinds = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in state.items()}
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))  # safetensors aligns numbers so
    header, end = {}, 0
    for name in names:
        dtype, shape = kinds[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH.size)
    return LENGTH.pack(len(text)) + text, names, LENGTH.size + len(text) + end


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().view(-1)
    if flat.stride(0) != 1:  # of one number or none, where torch lets it be anything
        flat = flat.new_empty(flat.shape).copy_(flat)
    return memory_of(flat)


def memory_of(flat: Tensor) -> memoryview:
    """The memory of a contiguous vector on the CPU, as bytes that can be read and written in place."""
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy arrays are buffers


def unpack(data: bytes) -> State:
    """The state of packed bytes; CodecError where they hold none."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError):
        raise CodecError(f"expected the bytes of a packed state, found {len(data)} bytes of something else") from None


def encode(state: Mapping[str, Tensor], packing: Packing) -> bytes:
    """The bytes of a float32 state as a plan wants them on the wire; the same state gives the same bytes."""
    if packing.precision == "bf16":
        return _finished(Halved(state), packing)
    if packing.precision == SPARSE:
        return _finished(sparse.thin(state, packing.keep), packing)
    return _finished(_to_int8(state) if packing.precision == "int8" else state, packing)


def encode_and_leave(state: State, packing: Packing) -> bytes:
    """As `encode`; `state`, whose tensors are contiguous, holds afterwards what the bytes leave out of it."""
    if packing.precision == "int8":
        return _finished(_to_int8(state, leave=True), packing)
    data = encode(state, packing)
    for name, arrives in sent_state(state, packing).items():
        state[name] -= arrives
    return data


def decode(data: bytes, packing: Packing, parameters: int) -> State:
    """The float32 state of encoded bytes, of at most so many parameters; CodecError where they hold none of that packing."""
    state = packed(data, packing, parameters)
    if packing.precision == "bf16":
        return _from_bf16(state)
    if packing.precision == SPARSE:
        return _from_sparse(state, parameters)
    return _from_int8(state) if packing.precision == "int8" else state


def packed(data: bytes, packing: Packing, parameters: int) -> State:
    """As `decode`, but the tensors as they are packed."""
    return unpack(plain(data, packing, parameters))


def plain(data: bytes, packing: Packing, parameters: int) -> bytes:
    """As `packed`, but the bytes of the tensors, which may still be anything."""
    if packing.compress == "none":
        return data
    try:
        return decompressed(data, _WIDTHS[packing.precision], 5 * parameters + HEADER_ROOM)
    except CompressionError as error:
        raise CodecError(str(error)) from None


def sent(state: State, packing: Packing) -> tuple[bytes, Mapping[str, Tensor]]:
    """The bytes that leave for a state, and the state that everybody has who gets them, which is made of `state` as it is read."""
    return encode(state, packing), sent_state(state, packing)


def sent_state(state: State, packing: Packing) -> Mapping[str, Tensor]:
    """The second of `sent`."""
    return state if packing.is_exact else Rounded(state, packing)


class Halved(Mapping[str, Tensor]):
    """The tensors of a state as bfloat16, made as they are read."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> Tensor:
        """The tensor; KeyError where there is none of the name."""
        return halved(self._state[name])

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._state)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._state)


class Rounded(Mapping[str, Tensor]):
    """A state as it arrives; each tensor is rounded when it is asked for, so that no second model is held."""

    def __init__(self, state: Mapping[str, Tensor], packing: Packing) -> None:
        self._state, self._packing = state, packing

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as it unpacks."""
        if self._packing.precision == "bf16":
            return halved(self._state[name]).float()
        if self._packing.precision == SPARSE:
            return sparse.thinned(self._state[name], self._packing.keep)
        return restored(*quantized(self._state[name]))

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._state)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._state)


def _to_int8(state: Mapping[str, Tensor], *, leave: bool = False) -> State:
    packed: State = {}
    for name, tensor in state.items():
        packed[name], packed[SCALE + name] = quantized(tensor, leave=leave)
    return packed


def _from_int8(packed: State) -> State:
    return {name: restored(packed[name], packed[SCALE + name]) for name in _scaled_names(packed)}


def _scaled_names(packed: State) -> list[str]:
    """The names of int8 tensors that all have their scales; CodecError where anything else is among them."""
    names = [name for name in packed if not name.startswith(SCALE)]
    for name in names:
        steps, scale = packed[name], packed.get(SCALE + name)
        fits = scale is not None and scale.shape == rows_of(steps).shape[:1]
        if scale is None or not fits or (steps.dtype, scale.dtype) != (torch.int8, torch.float32):
            raise CodecError("expected int8 tensors, each with a float32 scale for its rows")
    if len(packed) != 2 * len(names):
        raise CodecError("expected a tensor for each scale")
    return names


def _from_bf16(state: State) -> State:
    if any(tensor.dtype != torch.bfloat16 for tensor in state.values()):
        raise CodecError("expected bfloat16 tensors")
    return {name: state.pop(name).float() for name in list(state)}


def _from_sparse(packed: State, parameters: int) -> State:
    try:
        return sparse.dense(packed, parameters)
    except sparse.SparseError as error:
        raise CodecError(str(error)) from None


def _finished(narrow: Mapping[str, Tensor], packing: Packing) -> bytes:
    if packing.compress == "zstd":
        return compressed(parts(narrow), _layout(narrow)[2], _WIDTHS[packing.precision])
    return pack(narrow)
