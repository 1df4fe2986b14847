"""A secured round against a plain one, without the training and without a network."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer
from client.outbox import Outbox
from client.release import refusal, secured, trained
from client.secure import hold
from client.site import Site, read_site
from cxrbase_model.codec import encode
from cxrbase_model.messages import Code, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.secure.letters import STEPS
from cxrbase_model.settings import read
from cxrbase_model.state import State, byte_size
from cxrbase_model.transport import EXACT
from server.broadcast import Broadcast
from server.exchange import Exchange
from server.intake import Intake
from server.records import Record
from server.rules.gathering import gathering
from server.secure_round import SecureRound
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

_WIDTH, _BLOCKS = 768, 12
_EXAMPLES = 1000
_REPEATS = 3
_LOST = 2  # hospitals that drop out after sharing, in the round that is measured with dropouts


def secure(hospitals: int = 8) -> dict[str, float]:
    """A round of 85 million parameters (the matrices of a ViT-B) and eight hospitals in one process, one after the other.

    Plain: each hospital packs its update and keeps it in its outbox, the server unpacks, checks and folds it in. Secured: each hospital encodes and holds its
    update, shares, masks and opens; the server adds up and takes the masks off. Both over the same in-process Grid with the code of
    deployments; `ratio_lost` is of a round that two hospitals leave before they send their masked update. Training and network
    are not in it. Seconds are of the processor, the least of three rounds by turns. Bytes are those up and down after the training task, of those of the plain updates.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as in the process of a task
    torch.set_num_threads(1)
    update = _update()
    found: dict[str, float] = {"megabytes_of_an_update": byte_size(update) / 1e6}
    times: dict[str, list[float]] = {}
    for _ in range(_REPEATS):
        seconds, plain_bytes = _plain(update, hospitals)
        times.setdefault("plain", []).append(seconds)
        for name, bits, lost in (("32", 32, 0), ("16", 16, 0), ("lost", 32, _LOST)):
            seconds, moved = _secured(update, hospitals, bits, lost)
            times.setdefault(name, []).append(seconds)
            if not lost:
                found[f"bytes_{name}"] = moved / (plain_bytes * bits / 32)
    least = {name: min(each) for name, each in times.items()}
    found |= {f"seconds_{name}": each for name, each in least.items()}
    return found | {f"ratio_{name}": least[name] / least["plain"] for name in least if name != "plain"}


def _update() -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "qkv": (3 * _WIDTH, _WIDTH),
        "proj": (_WIDTH, _WIDTH),
        "fc1": (4 * _WIDTH, _WIDTH),
        "fc2": (_WIDTH, 4 * _WIDTH),
    }
    return {
        f"blocks.{block}.{name}": 0.001 * torch.randn(shape, generator=generator)
        for block in range(_BLOCKS)
        for name, shape in shapes.items()
    }


def _plan(hospitals: int, aggregation: dict[str, Any]) -> Plan:
    return read(
        Plan,
        {
            "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},
            "schema": 1, "name": "secure", "data": {"findings": ["Nodule"], "image_size": 16}, "model": {"patch_size": 8},
            "stages": [{"kind": "pretrain", "name": "mae", "rounds": 1}],
            "federation": {"quorum": hospitals - _LOST, "claimed_examples": None}, "aggregation": aggregation,
        },
    )  # fmt: skip


def _task(plan: Plan) -> Task:
    return Task("pretrain", "bench", 1, "mae", 1, "mae", plan_to_text(plan), plan.digest, "weights")


def _plain(update: State, hospitals: int) -> tuple[float, int]:
    """Seconds of a round, and bytes that hospitals have sent."""
    plan = _plan(hospitals, {})
    task, sites = _task(plan), dict[str, Site]()

    def node(name: str) -> Node:
        def respond(message: Message) -> Message:
            packed = encode(update, EXACT)
            reply = trained(name, task, packed, examples=_EXAMPLES, steps=1, loss=0.5, seconds=0.0, metrics={})
            Outbox(sites[name], task).keep(reply)
            return reply_to_message(reply, message)

        return respond

    with tempfile.TemporaryDirectory() as folder:
        sites |= _sites(Path(folder), plan, hospitals)
        started = time.process_time()
        with gathering(plan.aggregation.rule, update, Path(folder), None) as gathered:
            intake = Intake(plan, task, update, gathered, None, {})
            _ask(_exchange(hospitals, node), task, hospitals, intake)
            assert intake.admitted == hospitals
            gathered.result()
        return time.process_time() - started, _bytes(intake.entries, "bytes_received")


def _secured(update: State, hospitals: int, bits: int, lost: int = 0) -> tuple[float, int]:
    """Seconds of a round, and bytes that hospitals have sent and got after the training task."""
    plan = _plan(
        hospitals,
        {
            "secure": {
                "bits": bits,
                "span": 0.05,
                "hospitals": hospitals,
                "examples": _EXAMPLES,
            }
        },
    )
    task = _task(plan)
    with tempfile.TemporaryDirectory() as folder:
        sites = _sites(Path(folder), plan, hospitals)

        def node(name: str) -> Node:
            return lambda message: _respond(message, sites[name], plan, update, gone=name in _names(lost))

        exchange = _exchange(hospitals, node)
        started = time.process_time()
        round_ = SecureRound(exchange, plan, Broadcast(task, update, EXACT, b"", "", set()), update, Path(folder))
        _ask(exchange, task, hospitals, round_.intake)
        known = round_.finish({name: number for number, name in enumerate(_names(hospitals))})
        assert known, (round_.told, round_.doubt, round_.intake.entries)
        round_.result()
        seconds = time.process_time() - started
        entries = round_.intake.entries
        return seconds, _bytes(entries, "bytes_received") + _bytes(entries, "bytes_sent")


def _respond(message: Message, site: Site, plan: Plan, update: State, *, gone: bool) -> Message:
    task = task_from_message(message)
    if task.kind == "secure-masked" and gone:
        return reply_to_message(refusal(site.site, task, Code.FAILED), message)
    if task.kind in STEPS:
        return reply_to_message(answer(task, site), message)
    letter = hold(task, site, plan, update, examples=_EXAMPLES, loss=0.5)
    return reply_to_message(secured(site.site, task, letter), message)


def _sites(folder: Path, plan: Plan, hospitals: int) -> dict[str, Site]:
    return {name: read_site(write_tiny_hospital(folder / name, name, plan.data)) for name in _names(hospitals)}


def _names(hospitals: int) -> list[str]:
    return [f"h{number}" for number in range(hospitals)]


def _exchange(hospitals: int, node: Callable[[str], Node]) -> Exchange:
    return Exchange(LocalGrid({number: node(name) for number, name in enumerate(_names(hospitals))}))


def _ask(exchange: Exchange, task: Task, hospitals: int, intake: Intake) -> None:
    for number, message in exchange.ask(dict.fromkeys(range(hospitals), task), 600.0):
        intake.take(_names(hospitals)[number], message, {})


def _bytes(entries: Mapping[str, Record], which: str) -> int:
    return sum(int(line[which]) for line in entries.values())
