"""Parameter groups, layer-wise decay of the learning rate, and the schedule as a pure function of the global step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cxrbase_model.plan import Optimizer
from cxrbase_model.state import State

REFERENCE_BATCH = 256  # base learning rates are given for this batch size and scaled linearly (Goyal et al. 2017)


def learning_rate(step: int, total_steps: int, optimizer: Optimizer, batch_size: int) -> float:
    """The rate of a global step, from 0 to total_steps - 1: linear warm-up, then half a cosine to the lowest rate."""
    peak = optimizer.lr * batch_size / REFERENCE_BATCH
    warmup = round(total_steps * optimizer.warmup)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    lowest = peak * optimizer.min_lr
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def layer_of(name: str, depth: int) -> int:
    """How far up a parameter is: 0 for the patch embedding, k + 1 for block k, depth + 1 for everything above."""
    if name.startswith("encoder.embed"):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float, depth: int) -> list[dict[str, Any]]:
    """Groups by layer and by whether weights decay; each has `scale`, the factor on the scheduled learning rate.

    Vectors (biases, norms) do not decay. The factor is layer_decay to the power of the layers above (BEiT, arXiv 2106.08254).
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (layer_of(name, depth), parameter.ndim > 1)
        if key not in groups:
            scale = layer_decay ** (depth + 1 - key[0])
            groups[key] = {"params": [], "weight_decay": weight_decay if key[1] else 0.0, "scale": scale}
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def adamw(groups: list[dict[str, Any]], settings: Optimizer, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the groups, fused; the rate is set before each step by `set_rate`."""
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, settings.beta2), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the scheduled rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * float(group["scale"])


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """AdamW's step counts and moments, float32 on the CPU, named KIND.PARAMETER; parameters without a step are left out."""
    found: State = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            found[f"{kind}.{name}"] = value.detach().to(device="cpu", dtype=torch.float32, copy=True)
    return found


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Put moments of `moments_of` into a new optimizer over the same parameters; ValueError where they do not fit."""
    kinds = ("step", "exp_avg", "exp_avg_sq")
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    shapes = {f"{kind}.{name}": each.shape for name, each in parameters.items() for kind in kinds[1:]}
    shapes |= {f"step.{name}": torch.Size([]) for name in parameters}
    if {name: tensor.shape for name, tensor in moments.items()} != shapes:
        raise ValueError("moments: expected those of this model's parameters, found others")
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {kind: moments[f"{kind}.{name}"].to(parameter.device, copy=True) for kind in kinds}
