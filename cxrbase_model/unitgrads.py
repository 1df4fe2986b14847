"""Gradients of single units, layer by layer: their norms and weighted sums, from a layer's inputs and its outputs' gradients.

A matrix has, for T places of a unit, the gradient g'x. Its norm is found without making it where that is cheaper, as a sum over pairs
of places of (x x') times (g g') ("ghost norms", Li et al. 2021, arXiv 2110.05679; which is cheaper: Bu et al. 2022, arXiv 2210.00038).

Shapes: U units, T places of a unit, P inputs and D outputs of a layer. What is a row of a batch belongs to one unit, and the rows of
one unit are next to each other: masks of one picture are places of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TOGETHER = 4  # units that are added up in 16 bits before they go on in 32: few enough for ROOM
_CACHED = 1 << 18  # numbers at a time that stay in a core's cache
_PAIRS = 1 << 24  # numbers of x x' at a time

ROOM = {torch.bfloat16: 2.0**-5, torch.float16: 2.0**-5, torch.float32: 2.0**-12, torch.float64: 2.0**-40}
"""By how much of itself a norm is taken to be larger than measured, so that rounding does not lift a clipped gradient above the clip."""


@dataclass(frozen=True)
class Note:
    """One parameter's part of a backward pass.

    squares: each unit's squared norm. add: adds the units' gradients, multiplied by weights [U], to a tensor of the parameter's
    shape; units that are marked in the second tensor [U], where there is one, count for nothing whatever their numbers.
    """

    parameter: Tensor
    squares: Tensor  # [U]
    room: float
    add: Callable[[Tensor, Tensor, Tensor | None], None]


def notes_of(module: nn.Module, inputs: Tensor, gradient: Tensor, units: int, wanted: set[Tensor]) -> Iterator[Note]:
    """The notes of a layer's wanted parameters; `inputs` and `gradient` as the layer saw them, rows of `units` units."""
    if isinstance(module, nn.Linear):
        return _linear(module, inputs, gradient, units, wanted)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(module, inputs, gradient, units, wanted)
    assert isinstance(module, nn.Embedding)  # `has_rule` has been asked
    return _embedding(module, inputs, gradient, units, wanted)


def has_rule(module: nn.Module) -> bool:
    """Whether the module's own parameters have a rule here; what derives from a known layer may compute something else."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and module.padding_idx is None and not module.scale_grad_by_freq
    return type(module) is nn.Linear or (type(module) is nn.LayerNorm and len(module.normalized_shape) == 1)


def _linear(module: nn.Linear, x: Tensor, g: Tensor, units: int, wanted: set[Tensor]) -> Iterator[Note]:
    x_UTP, g_UTD = x.reshape(units, -1, x.shape[-1]), g.reshape(units, -1, g.shape[-1])
    if module.bias is not None and module.bias in wanted:
        yield _explicit(module.bias, _summed(g_UTD), x.dtype)
    if module.weight not in wanted:
        return
    places, inputs, outputs = x_UTP.shape[1], x_UTP.shape[2], g_UTD.shape[2]
    if inputs * outputs <= places * (inputs + outputs):
        yield _explicit(module.weight, torch.bmm(g_UTD.mT, x_UTP), x.dtype)
    else:
        yield Note(module.weight, _ghost_squares(x_UTP, g_UTD), ROOM[x.dtype], partial(_add_products, x_UTP, g_UTD))


def _layer_norm(module: nn.LayerNorm, x: Tensor, g: Tensor, units: int, wanted: set[Tensor]) -> Iterator[Note]:
    width = g.shape[-1]
    g_UTD = g.reshape(units, -1, width)
    if module.weight in wanted:
        together = max(1, _CACHED * units // g.numel()) if g.numel() else 1
        parts = zip(torch.split(x.reshape(g_UTD.shape), together), torch.split(g_UTD, together), strict=True)
        sums = [_summed(F.layer_norm(a.to(_wide(a)), (width,), eps=module.eps).mul_(b)) for a, b in parts]
        yield _explicit(module.weight, torch.cat(sums), x.dtype)
    if module.bias is not None and module.bias in wanted:
        yield _explicit(module.bias, _summed(g_UTD), x.dtype)


def _embedding(module: nn.Embedding, x: Tensor, g: Tensor, units: int, wanted: set[Tensor]) -> Iterator[Note]:
    """x: the indices that were looked up."""
    if module.weight not in wanted:
        return
    count, width = module.weight.shape
    g_UTD, index_UT = g.reshape(units, -1, width), x.reshape(units, -1)
    places = index_UT + count * torch.arange(units, device=x.device)[:, None]
    gradients = g.new_zeros(units * count, width, dtype=_wide(g))
    gradients.index_add_(0, places.flatten(), g_UTD.flatten(0, 1).to(gradients.dtype))
    yield _explicit(module.weight, gradients.reshape(units, count, width), g.dtype)


def _summed(g_UTD: Tensor) -> Tensor:
    """Sums over places, [U, D]. Sixteen bits are added up in 32 and the sum is rounded: asked for 32, torch would copy all first."""
    return g_UTD.sum(dim=1).to(_wide(g_UTD))


def _explicit(parameter: Tensor, gradients: Tensor, computed: torch.dtype) -> Note:
    """A note of gradients that were made, [U, ...] of the parameter's shape, by arithmetic of a type."""
    squares_U = torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=_wide(gradients)).square()
    return Note(parameter, squares_U, max(ROOM[computed], ROOM[gradients.dtype]), partial(_add_made, gradients))


def _ghost_squares(x_UTP: Tensor, g_UTD: Tensor) -> Tensor:
    """Squared norms of g'x, [U]; rounding may make a tiny one negative, which is none."""
    units = max(1, _PAIRS // x_UTP.shape[1] ** 2)
    found = []
    for x, g in zip(torch.split(x_UTP, units), torch.split(g_UTD, units), strict=True):
        alike = torch.bmm(x, x.mT).to(_wide(x))
        found.append(alike.mul_(torch.bmm(g, g.mT)).sum(dim=(1, 2)))
    return torch.cat(found).clamp(min=0)


def _add_made(gradients: Tensor, out: Tensor, weights_U: Tensor, bad_U: Tensor | None) -> None:
    gradients = _without(gradients, bad_U)
    size = len(gradients) if gradients.dtype == out.dtype else _TOGETHER  # what is converted is a copy
    for made, weights in zip(torch.split(gradients, size), torch.split(weights_U, size), strict=True):
        out.add_(torch.tensordot(weights.to(out.dtype), made.to(out.dtype), dims=1))


def _add_products(x_UTP: Tensor, g_UTD: Tensor, out: Tensor, weights_U: Tensor, bad_U: Tensor | None) -> None:
    x_UTP, g_UTD = _without(x_UTP, bad_U), _without(g_UTD, bad_U)
    size = len(x_UTP) if x_UTP.dtype == out.dtype else _TOGETHER
    parts = (torch.split(tensor, size) for tensor in (x_UTP, g_UTD, weights_U))
    for x, g, weights in zip(*parts, strict=True):
        scaled = (g * weights.to(g.dtype)[:, None, None]).flatten(0, 1)
        if x.dtype == out.dtype:
            out.addmm_(scaled.T, x.flatten(0, 1))
        else:
            out.add_(scaled.T @ x.flatten(0, 1))


def _without(tensor: Tensor, bad_U: Tensor | None) -> Tensor:
    """The tensor with zeros for some units: a weight of zero does not undo what is not finite."""
    return tensor if bad_U is None else tensor.masked_fill(bad_U.reshape(-1, *[1] * (tensor.ndim - 1)), 0.0)


def _wide(tensor: Tensor) -> torch.dtype:
    """The type that sums are made in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
