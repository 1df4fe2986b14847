"""Real hospitals of random pictures whose updates are added up under masks, and ways in which they drop out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.app import answer
from client.release import refusal
from client.site import Site, read_site
from cxrbase_model.codec import unpack
from cxrbase_model.messages import Code, Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.secure.ring import rings_of
from cxrbase_model.settings import read
from cxrbase_model.state import State
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

SECURE = {"threshold": 2, "hospitals": 8, "examples": 100, "deadline": 60.0}
STAGES = ("secure-shares", "secure-masked", "secure-unmask")
Spoil = Callable[[str, Task, Reply], Reply | None]


def plan(rounds: int = 1, secure: dict[str, Any] | None = SECURE, **sections: Any) -> Plan:
    """A plan of rounds of pretraining, by default under secure aggregation; `sections` replace or add to the plan's own."""
    aggregation = sections.pop("aggregation", {}) | ({} if secure is None else {"secure": secure})
    federation = {"quorum": 3, "deadline": 200, "join_deadline": 200, "repeats": 1} | sections.pop("federation", {})
    mapping = {
        "schema": 1, "name": "tiny", "seed": 1,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 16},
        "model": {
            "encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        },
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": rounds, "batch_size": 8, "optimizer": {"lr": 0.02}}],
        "federation": federation, "aggregation": aggregation,
        "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},
    } | sections  # fmt: skip
    return read(Plan, mapping)


def node(site: Site, spoil: Spoil) -> Node:
    """A hospital that does its work honestly, and sends what `spoil` makes of its reply; silence is for good."""
    silent: set[str] = set()

    def respond(message: Message) -> Message | None:
        if message.metadata.message_id in silent:
            return None
        task = task_from_message(message)
        reply = spoil(site.site, task, answer(task, site))
        if reply is None:
            silent.add(message.metadata.message_id)  # it is polled hundreds of times before the deadline
            return None
        return reply_to_message(reply, message)

    return respond


def honest(name: str, task: Task, reply: Reply) -> Reply | None:
    """What is sent is what was computed."""
    return reply


def silent_at(stage: str, *names: str) -> Spoil:
    """Hospitals that do not answer a step."""
    return lambda name, task, reply: None if task.kind == stage and name in names else reply


def refusing_at(stage: str, *names: str) -> Spoil:
    """Hospitals that answer a step with a code."""
    return lambda name, task, reply: refusal(name, task, Code.FAILED) if task.kind == stage and name in names else reply


def run(
    folder: Path, the_plan: Plan, names: Iterable[str] = "abcd", spoil: Spoil = honest, *, resume: bool = False
) -> RunStore:
    """Run a plan with tiny hospitals of these names below a folder, or go on with it; the run's store."""
    files = {name: folder / name / "SITE.yaml" for name in names}
    for name, file in files.items():
        if not file.exists():
            write_tiny_hospital(file.parent, name, the_plan.data)
    out = folder / "run"
    store = RunStore.resume(out, the_plan) if resume else RunStore.create(out, the_plan)
    sites = [read_site(file) for file in files.values()]
    grid = LocalGrid({number: node(site, spoil) for number, site in enumerate(sites, start=1)})
    RoundLoop(Exchange(grid), store, Live(out), expected=len(sites)).run()
    return store


def weights(store: RunStore) -> State:
    """The final weights of pretraining."""
    return unpack((store.folder / "stages" / "mae.safetensors").read_bytes())


def apart(one: RunStore, other: RunStore) -> float:
    """The largest difference between two runs' final weights."""
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first if first[name].numel())


def stated(the_plan: Plan, survivors: int, share: float) -> float:
    """The stated error of a mean, and what float32 adds in weights of magnitude two at most."""
    return survivors / (2 * rings_of(the_plan, None).body.scale * share) + 2.0**-22


def statuses(store: RunStore, number: int = 1) -> dict[str, tuple[str, str | None]]:
    """Status and code of each hospital in a round, by name."""
    return {line["site"]: (line["status"], line["code"]) for line in store.records()[number]["hospitals"]}
