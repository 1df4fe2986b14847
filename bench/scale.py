"""The server's own cost of a round against the number of hospitals."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from bench.rules import UNIT
from cxrbase_model.codec import encode
from cxrbase_model.initial import initial_state
from cxrbase_model.messages import Reply, reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node

NUMBERS = (10, 100, 1000)

_PLAN = {
    "schema": 1, "name": "scale", "data": {"findings": ["Nodule"], "image_size": 16},
    "model": {"encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
    "stages": [{"kind": "pretrain", "name": "mae", "rounds": 3}],
    "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},  # functions hold no weights to add a difference to
}  # fmt: skip


def scale() -> dict[str, float]:
    """Three rounds of a small model over 10, 100 and 1,000 hospitals in one process, each number in a process of its own.

    Hospitals are functions that give the same packed update, so that what is measured is the server: asking, admission, the mean, the
    commit. Milliseconds for each hospital and round (the same for all numbers where time is linear), and the memory that the run
    took at most above its start, megabytes.
    """
    found: dict[str, float] = {}
    for number in NUMBERS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            seconds, peak = pool.submit(measure, number).result()
        found |= {f"milliseconds_{number}": 1e3 * seconds / number, f"megabytes_{number}": peak / 1e6}
    return found | {"time_ratio": found["milliseconds_1000"] / found["milliseconds_100"]}


def measure(hospitals: int) -> tuple[float, float]:
    """Seconds of a round after the first, and bytes of memory at most above the start."""
    torch.set_num_threads(1)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # Flower makes messages for a task alone
    _run(2)  # what a first use loads is not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = _run(hospitals)
    return (times[-1] - times[1]) / (len(times) - 2), float(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ) * UNIT


def _run(hospitals: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return rounds_of(hospitals, Path(folder))


def rounds_of(hospitals: int, folder: Path) -> list[float]:
    """Run the plan in an empty folder; when each round was committed, seconds, the description of the hospitals first."""
    plan, times = read(Plan, _PLAN), list[float]()
    grid = LocalGrid({number: hospital(f"h{number:04}", plan) for number in range(hospitals)})
    RoundLoop(
        Exchange(grid), RunStore.create(folder, plan), Live(folder), expected=hospitals,
        observers=[lambda record: times.append(time.perf_counter())],
    ).run()  # fmt: skip
    return times


def hospital(name: str, plan: Plan) -> Node:
    """A node that answers without unpacking anything."""

    def node(message: Message) -> Message:
        task = task_from_message(message)
        reply = Reply(name, task.kind, task.round, task.stage, task.plan_digest)
        if task.kind == "describe":
            described = {"kinds": ["pretrain"], "pictures": {"train": 1000}}
            return reply_to_message(replace(reply, description=described), message)
        return reply_to_message(replace(reply, examples=10, steps=1, update=_update(plan)), message)

    return node


_updates: dict[str, bytes] = {}


def _update(plan: Plan) -> bytes:
    """The packed update, made once for a plan."""
    if plan.digest not in _updates:
        stage = plan.stages[0]
        state = initial_state(plan, stage, lambda name: {})  # type: ignore[arg-type]  # its only stage is pretraining
        _updates[plan.digest] = encode({name: 1e-3 * tensor for name, tensor in state.items()}, plan.transport.up)
    return _updates[plan.digest]
