"""int8 with one float32 scale for each row of a matrix, and bfloat16; a piece at a time, so that what is in work stays in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 127
_PIECE = (
    1 << 15
)  # numbers, with which torch does not begin to share work among threads: two cores are no faster at this


def quantized(tensor: Tensor, *, leave: bool = False) -> tuple[Tensor, Tensor]:
    """Each row over its largest magnitude, in whole steps of 1/127 of it; a vector is one row. Not finite in, not finite out.

    leave: `tensor`, which is contiguous, holds afterwards what the steps leave out of it.
    """
    rows = rows_of(tensor)
    steps, scale = torch.empty(rows.shape, dtype=torch.int8), torch.zeros(len(rows), 1)
    many = max(1, _PIECE // max(1, rows.shape[1]))
    pieces = zip(*(torch.split(each, many) for each in (rows, steps, scale)), strict=True) if rows.numel() else ()
    for piece, into, largest in pieces:
        low, high = piece.aminmax(dim=1, keepdim=True)
        torch.maximum(low.neg_(), high, out=largest).abs_().div_(_STEPS)
        whole = (piece / largest).nan_to_num_(0.0).round_().clamp_(-_STEPS, _STEPS)  # NaN where a row is all zeros
        into.copy_(whole)
        if leave:
            piece -= whole.mul_(largest)
    return steps.reshape(tensor.shape), scale.flatten()


def halved(tensor: Tensor) -> Tensor:
    """The bfloat16 numbers of a float32 tensor."""
    half = torch.empty(tensor.shape, dtype=torch.bfloat16)
    pieces = zip(torch.split(half.view(-1), _PIECE), torch.split(tensor.reshape(-1), _PIECE), strict=True)
    for into, piece in pieces:
        into.copy_(piece)
    return half


def restored(steps: Tensor, scale: Tensor) -> Tensor:
    """The numbers of steps and the scales of their rows."""
    return rows_of(steps).float().mul_(scale[:, None]).reshape(steps.shape)


def restored_pieces(steps: NDArray[np.int8], scale: NDArray[np.float32]) -> Iterator[Tensor]:
    """The numbers of `restored` in pieces [N], of steps [R, C] and the scales [R] of their rows; each holds until the next is asked for.

    Making the whole takes several times as long, since its memory is new each time.
    """
    count, width = steps.shape
    many = max(1, _PIECE // max(1, width))
    numbers = np.empty((min(many, count), width), np.float32)
    for start in range(0, count if width else 0, many):
        some = steps[start : start + many]
        into = numbers[: len(some)]
        with np.errstate(invalid="ignore", over="ignore"):  # whoever sent them may have scales that are not finite
            np.multiply(some, scale[start : start + many, None], out=into)
        yield torch.from_numpy(into.reshape(-1))


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of `rows_of` a tensor of a shape."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def rows_of(tensor: Tensor) -> Tensor:
    """A tensor as a matrix of rows [R, C]."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)
