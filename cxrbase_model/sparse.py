"""The largest numbers of each tensor alone (top-k, Aji and Heafield 2017, arXiv 1704.05021), for updates.

A tensor NAME becomes `NAME`, its kept numbers in the order of their places as bfloat16 [K]; `gap:NAME`, the steps from one place to the
next in 16 bits [K], from before the first; and `shape:NAME`. A step too long for 16 bits is cut by numbers that are zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cxrbase_model.state import State

_GAP, _SHAPE = "gap:", "shape:"  # no parameter's name has a colon
_LONGEST = 65_535  # of a step
_MOST_DIMENSIONS = 16


class SparseError(ValueError):
    """Tensors are not those of `thin`."""


def thin(state: Mapping[str, Tensor], keep: float) -> State:
    """The share `keep` of each tensor's numbers, those of largest magnitude, rounded up; NaN counts as the largest."""
    packed: State = {}
    for name, tensor in state.items():
        flat = tensor.reshape(-1)
        places = _largest(flat, keep)
        steps = np.diff(places.numpy(), prepend=-1)
        cuts = (steps - 1) // _LONGEST  # whole longest steps before each
        ends = np.cumsum(cuts + 1) - 1
        gaps = np.full(int((cuts + 1).sum()), _LONGEST, np.uint16)
        gaps[ends] = steps - cuts * _LONGEST
        values = torch.zeros(len(gaps), dtype=torch.bfloat16)
        values[torch.from_numpy(ends)] = flat[places].bfloat16()
        packed[name], packed[_GAP + name] = values, torch.from_numpy(gaps.view(np.int16))
        packed[_SHAPE + name] = torch.tensor(tensor.shape, dtype=torch.int64)
    return packed


def thinned(tensor: Tensor, keep: float) -> Tensor:
    """A tensor as it is after `thin` and `dense`."""
    flat = tensor.reshape(-1)
    places, arrived = _largest(flat, keep), torch.zeros_like(flat)
    arrived[places] = flat[places].bfloat16().float()
    return arrived.reshape(tensor.shape)


def dense(packed: Mapping[str, Tensor], parameters: int) -> State:
    """The float32 state of `thin`'s tensors; SparseError where they are none, or would become more than `parameters` numbers."""
    names = [name for name in packed if not name.startswith((_GAP, _SHAPE))]
    shapes = {name: _shape(packed.get(_SHAPE + name)) for name in names}
    if len(packed) != 3 * len(names) or sum(map(math.prod, shapes.values())) > parameters:
        raise SparseError(f"expected a gap and a shape for each tensor, and at most {parameters} numbers")
    return {name: _filled(packed[name], packed.get(_GAP + name), shapes[name]) for name in names}


def _filled(values: Tensor, gaps: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if gaps is None or (values.dtype, gaps.dtype) != (torch.bfloat16, torch.int16) or values.shape != gaps.shape:
        raise SparseError("expected bfloat16 numbers, each with a step of 16 bits")
    steps = gaps.reshape(-1).numpy().view(np.uint16).astype(np.int64)
    places = np.cumsum(steps) - 1
    filled = torch.zeros(math.prod(shape))
    if len(steps) and (steps.min() < 1 or places[-1] >= len(filled)):
        raise SparseError(f"expected places that rise within {len(filled)} numbers")
    filled[torch.from_numpy(places)] = values.reshape(-1).float()
    return filled.reshape(shape)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    if tensor is None or tensor.dtype != torch.int64 or tensor.dim() != 1 or len(tensor) > _MOST_DIMENSIONS:
        raise SparseError("expected a shape for each tensor, a vector of whole numbers")
    shape = tuple(tensor.tolist())
    if any(size < 0 for size in shape):
        raise SparseError(f"expected a shape, found {list(shape)}")
    return shape


def _largest(flat: Tensor, keep: float) -> Tensor:
    """The places, in rising order, of the share of a vector's numbers that are largest."""
    count = min(len(flat), math.ceil(round(keep * len(flat), 9)))
    return flat.abs().topk(count, sorted=False).indices.sort().values
