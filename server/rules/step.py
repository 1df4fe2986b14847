"""The server's step: the aggregated update, as a pseudo-gradient, moves the global model.

What a step remembers is a state of its own, tensors named KIND.TENSOR, committed with the weights, so that a run that was killed and
resumed ends in the same bits. It starts anew with each stage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cxrbase_model.aggregation import Adagrad, Adam, Add, Momentum, Step, Yogi
from cxrbase_model.state import State


def step(
    rule: Step, update: State, memory: Mapping[str, Tensor], averages: tuple[str, ...] = ()
) -> tuple[State, State]:
    """What to add to the global weights for an update, and what to remember for the next round; `memory` is empty in a stage's first.

    averages: what the names of tensors begin with that are averages of past weights, such as a teacher. An update of these is no
    pseudo-gradient but where the hospitals' own have come to, so they are added as they are. Computed in float64 and rounded to
    float32, one tensor at a time.
    """
    if isinstance(rule, Add):
        return update, {}
    moves: State = {}
    kept: State = {}
    for name, delta in update.items():
        if name.startswith(averages):
            moves[name] = delta
            continue
        if isinstance(rule, Momentum):
            moved, remembered = _momentum(rule, name, delta.double(), memory)
        else:
            moved, remembered = _adaptive(rule, name, delta.double(), memory)
        moves[name] = moved.float()
        kept |= {key: value.float() for key, value in remembered.items()}
    return moves, kept


def _momentum(rule: Momentum, name: str, delta: Tensor, memory: Mapping[str, Tensor]) -> tuple[Tensor, State]:
    velocity = delta + rule.momentum * _recall(memory, f"velocity.{name}", delta, 0.0)
    return rule.lr * velocity, {f"velocity.{name}": velocity}


def _adaptive(
    rule: Adagrad | Adam | Yogi, name: str, delta: Tensor, memory: Mapping[str, Tensor]
) -> tuple[Tensor, State]:
    """Algorithm 2 of Reddi et al. 2021: no correction of the first rounds' bias, and a second moment that starts at tau squared."""
    first = _recall(memory, f"first.{name}", delta, 0.0)
    second = _recall(memory, f"second.{name}", delta, rule.tau**2)
    first = rule.beta1 * first + (1 - rule.beta1) * delta
    square = delta.square()
    if isinstance(rule, Adagrad):
        second = second + square
    elif isinstance(rule, Adam):
        second = rule.beta2 * second + (1 - rule.beta2) * square
    else:
        second = second - (1 - rule.beta2) * square * torch.sign(second - square)
    return rule.lr * first / (second.sqrt() + rule.tau), {f"first.{name}": first, f"second.{name}": second}


def _recall(memory: Mapping[str, Tensor], key: str, like: Tensor, start: float) -> Tensor:
    return memory[key].double() if key in memory else torch.full_like(like, start)
