"""Hospitals that are functions: they add a constant to the weights, so every expected number can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Message

from cxrbase_model.codec import decode, encode
from cxrbase_model.messages import Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import EvaluateStage, Plan, PretrainStage, plan_from_text
from cxrbase_model.settings import read
from cxrbase_model.state import State, digest
from server.initial import initial_state
from server.store import RunStore
from sim.grid import Node

Change = Callable[[Task, Reply], Reply | None]


def plan(**federation: Any) -> Plan:
    mapping = {
        "schema": 1,
        "name": "test",
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 16},
        "model": {
            "encoder": "vit_micro",
            "patch_size": 8,
            "depth": 1,
            "decoder_width": 32,
            "decoder_depth": 1,
            "decoder_heads": 2,
        },
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 2},
            {"kind": "finetune", "name": "detect", "rounds": 2},
            {"kind": "evaluate", "name": "test"},
        ],
        "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},
        "federation": {"quorum": 2, "deadline": 1, "join_deadline": 1, "repeats": 1} | federation,
    }
    return read(Plan, mapping)


def short_plan(**federation: Any) -> Plan:
    """The plan of three rounds of pretraining."""
    whole = plan(**federation)
    stage = whole.stages[0]
    assert isinstance(stage, PretrainStage)
    return replace(whole, stages=(replace(stage, rounds=3),))


def start_of(store: RunStore, name: str = "mae") -> State:
    """The weights that a stage of training starts from."""
    stage = store.plan.stage(name)
    assert not isinstance(stage, EvaluateStage)
    return initial_state(store.plan, stage, store)


def hospital(name: str, shift: float, examples: int, change: Change = lambda task, reply: reply) -> Node:
    """A node that adds `shift` to every weight; `change` may spoil its reply or drop it (None)."""

    def node(message: Message) -> Message | None:
        task = task_from_message(message)
        reply = Reply(name, task.kind, task.round, task.stage, task.plan_digest)
        if task.kind == "describe":
            return reply_to_message(
                replace(
                    reply, description={"kinds": ["pretrain", "finetune", "evaluate"], "pictures": {"train": examples}}
                ),
                message,
            )
        transport = plan_from_text(task.plan_text).transport
        state = decode(task.state, transport.down(task.kind), 10**6)
        assert digest(state) == task.state_digest
        if task.kind == "evaluate":
            reply = replace(reply, examples=examples, evaluation={"mean_auroc": None})
        else:
            update = encode({key: torch.full_like(tensor, shift) for key, tensor in state.items()}, transport.up)
            reply = replace(reply, examples=examples, steps=1, loss=shift, update=update)
        changed = change(task, reply)
        return reply_to_message(changed, message) if changed is not None else None

    return node


def in_training(change: Change) -> Change:
    return lambda task, reply: change(task, reply) if task.kind == "pretrain" else reply
