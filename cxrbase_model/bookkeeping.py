"""The sum of clipped gradients, one a unit, in one backward pass: book-keeping (Bu et al. 2022, arXiv 2210.00038).

The backward pass makes no gradient of a weight. What each layer has seen and what came back is kept until the norm of each unit's
whole gradient is known; then the weighted sum of all units' gradients is made at once, for about the cost that the gradients of the
batch would have had. U is the number of units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from cxrbase_model.privacy import Privacy
from cxrbase_model.unitgrads import Note, has_rule, notes_of

STABILITY = 0.01  # what automatic clipping adds to a norm, so that a tiny gradient stays small (arXiv 2206.07136)


class Bookkeeper:
    """Adds the sum of the clipped gradients of a model's units to `.grad`: `with watch(units): ...backward()`, then `add_clipped()`.

    ValueError where the model trains a parameter that has no rule, or that two layers share.
    """

    def __init__(self, model: nn.Module, privacy: Privacy) -> None:
        self._privacy = privacy
        self._layers = [module for module in model.modules() if _trained(module)]
        self.parameters: list[Tensor] = [parameter for module in self._layers for parameter in _trained(module)]
        for module in self._layers:
            if not has_rule(module):
                raise ValueError(f"privacy: there is no rule for the gradients of a {type(module).__name__}")
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError("privacy: expected each weight in one layer, found one in several")
        self._notes: list[Note] = []

    @contextmanager
    def watch(self, units: int) -> Iterator[None]:
        """Within: one forward pass of so many units, and the backward pass from the sum of their losses."""
        self._notes.clear()
        used: set[nn.Module] = set()
        hooks = []
        for module in self._layers:
            if isinstance(module, nn.Linear):
                hooks.append(module.register_forward_pre_hook(_as_computed))
            hooks.append(module.register_forward_hook(partial(self._forward, units, used)))
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            yield
        except BaseException:
            self._notes.clear()  # out of memory: it is computed again in smaller parts
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self.parameters:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def add_clipped(self) -> None:
        """Add the sum of the clipped gradients of the last pass to each `.grad`.

        A unit whose gradient is not finite counts as zero: it cannot stop the training, which would tell of it.
        """
        squares_LU = torch.stack([note.squares for note in self._notes])
        weights_LU, norms_U = self._weights(squares_LU), squares_LU.sum(dim=0)
        bad_U = ~torch.isfinite(norms_U)
        weights_LU.masked_fill_(bad_U, 0.0)
        some_U = bad_U if bool(bad_U.any()) else None
        while self._notes:  # what each has kept goes as soon as it is used
            note = self._notes.pop()
            if note.parameter.grad is None:
                note.parameter.grad = torch.zeros_like(note.parameter)
            note.add(note.parameter.grad, weights_LU[len(self._notes)], some_U)

    def _weights(self, squares_LU: Tensor) -> Tensor:
        """What each unit's gradient of each parameter is multiplied by, [L, U]."""
        clip, room = self._privacy.clip, 1 + max(note.room for note in self._notes)
        if self._privacy.clipping == "per-layer":
            share = clip / math.sqrt(len(self.parameters))  # the squares of all shares add up to the clip's
            return share / (squares_LU.sqrt() * room).clamp(min=share)
        norms_U = squares_LU.sum(dim=0).sqrt() * room
        flat = self._privacy.clipping == "flat"
        weights_U = clip / norms_U.clamp(min=clip) if flat else clip / (norms_U + STABILITY)
        return weights_U.repeat(len(squares_LU), 1)

    def _forward(
        self, units: int, used: set[nn.Module], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        kept = inputs[0].detach()
        if module in used:
            raise RuntimeError(
                f"privacy: expected one use of each layer in a pass, found two of a {type(module).__name__}"
            )
        if len(kept) % units:
            raise RuntimeError(f"privacy: expected rows of {units} units in each layer, found {len(kept)} rows")
        used.add(module)
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(partial(self._backward, units, module, kept))  # type: ignore[no-untyped-call]  # torch has no types for it

    def _backward(self, units: int, module: nn.Module, kept: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            self._notes.extend(
                notes_of(module, kept, gradient.detach(), units, set(_own(module)) & set(self.parameters))
            )


def _own(module: nn.Module) -> list[Tensor]:
    return list(module.parameters(recurse=False))


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in _own(module) if parameter.requires_grad]


def _as_computed(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A matrix's inputs in the type that autocast would give them: what is kept is what was multiplied, in half the memory."""
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return inputs
    return (inputs[0].to(torch.get_autocast_dtype(kind)), *inputs[1:])
