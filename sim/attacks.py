"""Hospitals that send what they should not, for studies of the rules over a `LocalGrid`: each wraps the node of an honest one.

An attack changes the update of training replies and leaves everything else as it is, so that admission sees a sound reply. What it
sends is packed as the plan says, and the same in each repetition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from flwr.app import Message

from cxrbase_model.codec import decode, encode
from cxrbase_model.messages import Task, reply_from_message, reply_to_message, task_from_message
from cxrbase_model.plan import plan_from_text
from cxrbase_model.seeds import generator
from cxrbase_model.state import State, norm
from sim.grid import Node

Attack = Callable[[Task, State], State]  # the task and the honest update to what is sent

_MOST_PARAMETERS = 1 << 33  # of a model that is studied


def attacking(node: Node, attack: Attack) -> Node:
    """The node of a hospital whose training updates an attack has changed."""

    def answer(message: Message) -> Message | None:
        honest = node(message)
        task = task_from_message(message)
        if honest is None or task.kind not in ("pretrain", "finetune"):
            return honest
        reply = reply_from_message(honest)
        if not reply.update:
            return honest
        packing = plan_from_text(task.plan_text).transport.up
        update = attack(task, decode(reply.update, packing, _MOST_PARAMETERS))
        return reply_to_message(replace(reply, update=encode(update, packing)), message)

    return answer


def sign_flip(factor: float = 1.0) -> Attack:
    """Away from where the hospital's training leads, by `factor` times its length."""
    return scaled(-factor)


def scaled(factor: float) -> Attack:
    """The honest update many times over: to replace the model, or a forgotten division."""
    return lambda task, update: {name: tensor * factor for name, tensor in update.items()}


def head_flip(factor: float = 2.5) -> Attack:
    """The encoder's honest update, and the classifier's head turned round, so long that the whole is `factor` times the honest length.

    It is meant to pass checks of norms and directions: most tensors point where all others do. An update without a head stays honest.
    """

    def attack(task: Task, update: State) -> State:
        head = {name: tensor for name, tensor in update.items() if name.startswith("head")}
        rest = norm({name: tensor for name, tensor in update.items() if name not in head})
        room = (factor * norm(update)) ** 2 - rest**2
        if not head or norm(head) == 0.0 or room <= 0.0:
            return update
        scale = -(room**0.5) / norm(head)
        return update | {name: tensor * scale for name, tensor in head.items()}

    return attack


def gaussian(seed: int, factor: float = 1.0) -> Attack:
    """Noise instead of an update, `factor` times its length."""

    def attack(task: Task, update: State) -> State:
        return _of_length(factor * norm(update), update, seed, task.round)

    return attack


def free_rider(seed: int, share: float = 1e-3) -> Attack:
    """Next to nothing, for which nobody trained: noise with a share of the honest update's length."""
    return gaussian(seed, share)


def colluding(seed: int, factor: float = 1.0) -> Attack:
    """All who share the seed send the same: one direction of their own in all rounds, `factor` times the honest length.

    Copies of one update are each other's nearest neighbours, which is what Krum looks for.
    """
    return lambda task, update: _of_length(factor * norm(update), update, seed, 0)


def not_a_number() -> Attack:
    """A single NaN, as a broken device sends it."""

    def attack(task: Task, update: State) -> State:
        name = next(name for name in sorted(update) if update[name].numel())
        broken = update[name].clone()
        broken.view(-1)[0] = torch.nan
        return {**update, name: broken}

    return attack


def _of_length(length: float, like: State, seed: int, number: int) -> State:
    """A random update of that Euclidean norm."""
    draw = generator(seed, "attack", number)
    noise = {name: torch.randn(like[name].shape, generator=draw) for name in sorted(like)}
    scale = length / norm(noise)
    return {name: tensor * scale for name, tensor in noise.items()}
