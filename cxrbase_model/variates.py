"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): control variates take out of each hospital's steps what is its own, so that long local
training of hospitals that differ does not drift towards none of them.

Hospital i has c_i, the mean gradient along its own path in its last round, the server c, the mean of all c_i. Each local gradient g becomes
g - c_i + c before the optimizer sees it. After the round, c_i is the mean of the uncorrected g, each weighted by its step's rate.

With plain SGD that is the paper's option II to the last bit of algebra, for any schedule of rates: (x - y) / sum of rates - c + c_i is that very mean. With
AdamW the two differ: (x - y) over the rates is then a mean of normalised steps, about one however small the gradients that it would be added to. The mean of
gradients is in their own units and is what is used. What is approximate: AdamW's moments are of corrected gradients, whose lengths differ from the plain ones, and its
weight decay is no part of g.

On the wire and in the server's memory a variate is a tensor `control/NAME` beside the weights, so that packing, digests, exact sums and admission hold for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.state import State

PREFIX = "control/"


def controlled(model: nn.Module, aggregation: Aggregation) -> State:
    """Zeros for each parameter that the stage trains and the hospital shares: the first variates, by their parameters' names."""
    return {
        name: torch.zeros(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not aggregation.is_local(name)
    }


def prefixed(variates: Mapping[str, Tensor]) -> State:
    """Variates under the names that they travel by."""
    return {PREFIX + name: tensor for name, tensor in variates.items()}


def divided(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """The weights of a state that travelled, and the variates by their parameters' names."""
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    return weights, {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


class Path:
    """The gradients that a model went along, summed as they come."""

    def __init__(self, model: nn.Module, correction: Mapping[str, Tensor]) -> None:
        self._names = {each: name for name, each in model.named_parameters() if name in correction}
        self._correction = dict(correction)
        self._sums: dict[str, Tensor] = {}
        self._rates: dict[str, float] = {}

    @torch.no_grad()
    def step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Note the gradients that a step is about to be made with, and correct them."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(parameter)
                if name is not None and parameter.grad is not None:
                    self._follow(name, parameter.grad, float(group["lr"]))

    def _follow(self, name: str, gradient: Tensor, rate: float) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(gradient)
            self._correction[name] = self._correction[name].to(gradient.device)
        self._sums[name].add_(gradient, alpha=rate)
        self._rates[name] = self._rates.get(name, 0.0) + rate
        gradient.add_(self._correction[name])

    def mean(self) -> State:
        """The mean gradient, weighted by rates, float32 on the CPU; zero where no step was made."""
        return {
            name: (self._sums[name] / self._rates[name]).cpu().float()
            if self._rates.get(name, 0.0) > 0
            else torch.zeros(tensor.shape)
            for name, tensor in self._correction.items()
        }


@contextlib.contextmanager
def steered(model: nn.Module, correction: Mapping[str, Tensor]) -> Iterator[Path]:
    """Add the correction c - c_i to the model's gradients at each step within the block, and follow where they would have gone without.

    Cost: two copies of the trained weights on the model's device, and two additions a step.
    """
    path = Path(model, correction)
    handle = register_optimizer_step_pre_hook(path.step)
    try:
        yield path
    finally:
        handle.remove()
