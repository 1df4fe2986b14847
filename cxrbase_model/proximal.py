"""FedProx's proximal term (Li et al. 2020, arXiv 1812.06127): local training is pulled back towards the weights that it started from.

Adding `strength / 2 x |w - w_global|^2` to the loss adds `strength x (w - w_global)` to each gradient. It is added as the optimizer
steps, once a step however many backward passes the step has, and after gradients were clipped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


@contextlib.contextmanager
def proximal(model: nn.Module, strength: float) -> Iterator[None]:
    """Pull the model towards the weights that it enters the block with, at each step within it; nothing is done where strength is 0.

    Cost: one copy of the trained weights on the model's device, and one addition a step.
    """
    if strength == 0.0:
        yield
        return
    anchors: dict[nn.Parameter, Tensor] = {each: each.detach().clone() for each in model.parameters()}

    @torch.no_grad()
    def pull(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter in anchors:
                    anchors[parameter] = anchors[parameter].to(parameter.device)  # training may have moved the model
                    parameter.grad.add_(parameter - anchors[parameter], alpha=strength)

    handle = register_optimizer_step_pre_hook(pull)
    try:
        yield
    finally:
        handle.remove()
