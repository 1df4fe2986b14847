"""A broadcast as what has changed since one that the hospital holds, without any loss.

Not the weights are subtracted but the bits of the packed numbers, as whole numbers: base and difference give exactly the packed weights,
whoever adds them up. What arrives is thus the same, to the bit, by a difference and whole, however many rounds a hospital has
missed, and errors cannot add up from round to round. Small changes become small numbers, which zstd shortens.

A tensor travels as its pieces: float32 and bf16 as one, int8 as its steps and the scales of its rows. Which bits are subtracted is in
`bitplanes`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxrbase_model.bitplanes import Planes, planes, whole
from cxrbase_model.codec import SCALE, CodecError, pack, unpack
from cxrbase_model.quantize import halved, quantized, restored, restored_pieces, rows_and_columns, rows_of
from cxrbase_model.state import State
from cxrbase_model.transport import PRECISIONS

Pieces = tuple[Tensor, ...]  # of one tensor as it is packed

_FORM = "form:"  # before the name of a tensor: 1 if it is a difference, and the tensor's shape
_SAMPLE = 1 << 15  # numbers that tell whether a difference is shorter than the tensor itself
_PART = 1 << 15  # numbers that are worked on at a time, with which torch does not begin to share work among threads
_AHEAD = 2  # tensors that wait to be encoded
_LEVEL = 1
_MOST_DIMENSIONS = 8
_DTYPES = {"float32": (torch.float32,), "bf16": (torch.bfloat16,), "int8": (torch.int8, torch.float32)}


def narrow(tensor: Tensor, precision: str) -> Pieces:
    """The pieces of a float32 tensor in a precision of `transport.PRECISIONS`."""
    if precision == "int8":
        return quantized(tensor)
    return (halved(tensor) if precision == "bf16" else tensor,)


def widen(pieces: Pieces) -> Tensor:
    """The float32 tensor of pieces."""
    return restored(*pieces) if len(pieces) == 2 else pieces[0].float()


def widened(pieces: Pieces) -> Iterator[Tensor]:
    """The numbers of `widen` in parts [N], each of which holds until the next is asked for."""
    if len(pieces) == 2:
        return restored_pieces(rows_of(pieces[0]).numpy(), pieces[1].numpy())
    return (part.float() for part in torch.split(pieces[0].reshape(-1), _PART))


def gathered(packed: State, precisions: Iterable[str] = PRECISIONS) -> dict[str, Pieces]:
    """The pieces of each tensor of a packed state, as `codec.packed` gives it; CodecError where they are of none of the precisions."""
    names = [name for name in packed if not name.startswith(SCALE)]
    found: dict[str, Pieces] = {
        name: (packed[name], packed[SCALE + name]) if SCALE + name in packed else (packed[name],) for name in names
    }
    kinds = [_DTYPES[precision] for precision in precisions]
    if len(packed) != sum(map(len, found.values())) or not all(_is_of(pieces, kinds) for pieces in found.values()):
        raise CodecError("expected tensors of one precision, with a scale for each row of int8")
    return found


def _is_of(pieces: Pieces, kinds: Iterable[tuple[torch.dtype, ...]]) -> bool:
    if tuple(piece.dtype for piece in pieces) not in kinds:
        return False
    return len(pieces) == 1 or pieces[1].shape == _scales(pieces[0].shape)


def _scales(shape: torch.Size) -> torch.Size:
    """The shape of the scales of an int8 tensor's rows."""
    return torch.Size([rows_and_columns(shape)[0]])


def scattered(pieces: Mapping[str, Pieces]) -> State:
    """The inverse of `gathered`."""
    return {SCALE * index + name: piece for name, each in pieces.items() for index, piece in enumerate(each)}


def encode_difference(new: Iterable[tuple[str, Pieces]], base: Mapping[str, Pieces], precision: str) -> bytes:
    """The bytes of tensors of a precision as a difference to others, which may be of another one.

    A tensor that the base lacks, or has in another shape, or that has changed beyond recognition, travels whole.
    """
    sent: State = {}
    with ThreadPoolExecutor(1, "difference") as worker:  # while the next tensors are made here
        under_way: deque[Future[State]] = deque()
        for name, pieces in new:
            under_way.append(worker.submit(_encoded, name, pieces, base, precision))
            if len(under_way) > _AHEAD:
                sent |= under_way.popleft().result()
        for each in under_way:
            sent |= each.result()
    return pack(sent)


def _encoded(name: str, pieces: Pieces, base: Mapping[str, Pieces], precision: str) -> State:
    """What is sent of one tensor."""
    before = _of_precision(base.get(name), precision)
    if before is not None and not (_alike(pieces, before) and _is_shorter(pieces[0], before[0])):
        before = None
    sent = {_FORM + name: torch.tensor([int(before is not None), *pieces[0].shape], dtype=torch.int64)}
    for index, piece in enumerate(pieces):
        sent[SCALE * index + name] = _squeezed(planes(piece, None if before is None else before[index]))
    return sent


def decode_difference(data: bytes, base: Mapping[str, Pieces], precision: str, parameters: int) -> dict[str, Pieces]:
    """The tensors whose difference to `base` was encoded, of at most so many parameters; CodecError where the bytes are of none."""
    sent = unpack(data)
    names = [name.removeprefix(_FORM) for name in sent if name.startswith(_FORM)]
    found, left = {}, parameters
    for name in names:
        is_difference, shape = _form(sent[_FORM + name], left)
        left -= math.prod(shape)
        before = _of_precision(base.get(name), precision) if is_difference else None
        if is_difference and (before is None or before[0].shape != shape):
            raise CodecError("expected a difference to tensors that are there, of the same shape")
        found[name] = tuple(_decoded(sent, name, shape, precision, before))
    if len(sent) != len(names) * (1 + len(_DTYPES[precision])):
        raise CodecError("expected a form and the pieces of each tensor, and nothing else")
    return found


def _decoded(
    sent: State, name: str, shape: torch.Size, precision: str, before: Pieces | None
) -> Iterator[Tensor]:  # fmt: skip
    for index, dtype in enumerate(_DTYPES[precision]):
        blob = sent.get(SCALE * index + name)
        if blob is None or blob.dtype != torch.uint8:
            raise CodecError("expected compressed pieces of each tensor")
        size = shape if index == 0 else _scales(shape)
        found = _expanded(blob, dtype.itemsize, size.numel())
        yield whole(found, None if before is None else before[index], dtype).reshape(size)


def _form(form: Tensor, left: int) -> tuple[bool, torch.Size]:
    """Whether a tensor is a difference, and its shape; CodecError where that is none, or of more numbers than are left."""
    if form.dtype != torch.int64 or form.dim() != 1 or not 0 < len(form) <= 1 + _MOST_DIMENSIONS:
        raise CodecError("expected the form of a tensor")
    kind, *shape = form.tolist()
    if kind not in (0, 1) or any(not 0 <= each <= left for each in shape) or math.prod(shape) > left:
        raise CodecError("expected the form of a tensor within the largest model")
    return bool(kind), torch.Size(shape)


def _of_precision(pieces: Pieces | None, precision: str) -> Pieces | None:
    """Pieces as others of a precision would be; both sides do this, and to the same bits."""
    if pieces is None or tuple(piece.dtype for piece in pieces) == _DTYPES[precision]:
        return pieces
    return narrow(widen(pieces), precision)


def _alike(pieces: Pieces, before: Pieces) -> bool:
    return [piece.shape for piece in pieces] == [piece.shape for piece in before]


def _is_shorter(piece: Tensor, before: Tensor) -> bool:
    """Whether a sample of a tensor's rows is shorter as a difference."""
    flat, old = piece.reshape(-1), before.reshape(-1)
    apart = max(1, len(flat) // _SAMPLE)
    flat, old = flat[::apart], old[::apart]
    return len(_squeezed(planes(flat, old))) <= len(_squeezed(planes(flat, None)))


def _squeezed(planes: Planes) -> Tensor:
    """Compressed bytes [B] uint8: the low bytes of all numbers first, the high ones, which are mostly zero, last."""
    from imagecodecs import zstd_encode  # imported here, as in `codec`

    buffer: Any = planes  # any will do, whatever its types say
    return torch.frombuffer(bytearray(zstd_encode(buffer, level=_LEVEL)), dtype=torch.uint8)


def _expanded(blob: Tensor, width: int, count: int) -> Planes:
    """The inverse of `_squeezed` [W, N]; CodecError where the bytes do not become so many numbers."""
    from imagecodecs import ZstdError, zstd_decode

    planes = np.empty((width, count), np.uint8)
    try:
        plain = zstd_decode(memoryview(blob.numpy()), out=memoryview(planes).cast("B") if count else 0)  # type: ignore[arg-type]  # numpy arrays are buffers
    except (ZstdError, ValueError):
        raise CodecError("expected zstd, found something else") from None
    if len(plain) != count * width:
        raise CodecError(f"expected {count} numbers of {width} bytes, found {len(plain)} bytes")
    return planes
