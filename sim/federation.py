"""One federation in one process: the server's round loop, its rules and admission, and the hospitals' own work, without any network.

Each hospital answers by `client.app.answer`, from a training cache like a real one's; the server is `server.rounds.RoundLoop`. What
Flower does between the two is left out, so that hundreds of federations fit into an afternoon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from client.app import answer
from client.archive.cache import Shard, append_pictures, checksum, shard_name, write_cache
from client.archive.settings import FolderArchive
from client.own import Own
from client.site import Compute, Policy, Site
from cxrbase_model.files import private_folder
from cxrbase_model.messages import Task, reply_to_message, task_from_message, task_to_message
from cxrbase_model.plan import DataSpec, Plan
from cxrbase_model.state import State
from server.exchange import Exchange
from server.live import Live
from server.records import Record
from server.rounds import RoundLoop, RunFailed
from server.store import RunStore
from sim.attacks import Attack, attacking
from sim.grid import LocalGrid, Node

_TTL = 3600.0  # seconds that a message counts as valid; none travels

Watch = Callable[[Record, RunStore], None]


def write_hospital(
    home: Path, name: str, spec: DataSpec, pictures_NHW: NDArray[np.uint8], labels_NC: NDArray[np.float32],
    patients_N: NDArray[np.int64],
) -> Site:  # fmt: skip
    """A hospital whose training cache holds these pictures, all of them to train on; returns its settings.

    pictures: uint8 [N, S, S]. labels: float32 [N, C], NaN where unknown. patients: int64 [N].
    """
    cache, side = private_folder(home / "private") / "cache", spec.image_size
    private_folder(cache)
    append_pictures(cache / shard_name(1), 0, iter(pictures_NHW), side * side)
    count = len(pictures_NHW)
    table: dict[str, NDArray[Any]] = {
        "labels": labels_NC,
        "patient": np.ascontiguousarray(patients_N[:, None]).view(np.uint8).repeat(2, axis=1),
        "split": np.zeros(count, np.uint8),
        "shard": np.zeros(count, np.uint32),
        "slot": np.arange(count, dtype=np.uint32),
    }
    table |= {group: np.zeros(count, np.uint8) for group in ("sex", "age_band", "view", "scanner")}
    shard = Shard(shard_name(1), count, checksum(cache / shard_name(1), count * side * side))
    write_cache(cache, spec, (side, side), [shard], table, {})
    return Site(
        schema=1, site=name, archive=FolderArchive(path=home), private=home / "private", minimum_cell=1,
        compute=Compute(device="cpu", threads=1), policy=Policy(plans="any"),
    )  # fmt: skip


def run_federation(
    folder: Path, plan: Plan, sites: Sequence[Site], attacks: Mapping[str, Attack], watch: Watch
) -> tuple[RunStore, str]:
    """Run a plan to its end, or to where it cannot go on; returns the run and why it ended early, "" where it did not.

    attacks: by the name of the hospital whose updates they change. watch: called after each committed round.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # Flower makes messages for a task alone
    logging.getLogger("cxrbase.client").setLevel(logging.ERROR)  # a hospital that refuses is in the round's record
    store = RunStore.create(folder, plan)
    nodes = {number: _node(site, attacks.get(site.site)) for number, site in enumerate(sites, start=1)}
    loop = RoundLoop(
        InTurn(LocalGrid(nodes)), store, Live(folder), expected=len(sites),
        observers=[lambda record: watch(record, store)],
    )  # fmt: skip
    try:
        loop.run()
    except RunFailed as error:
        return store, str(error)
    return store, ""


class InTurn(Exchange):
    """The server's side of a wire that has no length: each hospital is asked and answers, one after the other, in this thread."""

    def __init__(self, grid: LocalGrid) -> None:
        super().__init__(grid)
        self._nodes = grid

    def ask(
        self,
        tasks: Mapping[int, Task],
        deadline: float,
        absence: float | None = None,
        enough: Callable[[], bool] = lambda: True,
        instead: Callable[[int, Message], Task | None] = lambda number, reply: None,
    ) -> Iterator[tuple[int, Message]]:
        """Yield (node number, reply) in the order of the numbers."""
        for number, task in sorted(tasks.items()):
            for reply in self._sent(number, task):
                if (other := instead(number, reply)) is None:
                    yield number, reply
                else:
                    yield from ((number, again) for again in self._sent(number, other))

    def _sent(self, number: int, task: Task) -> Iterable[Message]:
        return self._nodes.send_and_receive([task_to_message(task, number, ttl=_TTL)])


def own_tensors(site: Site, plan: Plan, stage: str, stage_round: int) -> State:
    """What a hospital has kept for itself after a round of a stage, by the plan's aggregation.keep_local."""
    if not plan.aggregation.keep_local:
        return {}
    kind = plan.stage(stage).kind
    after = Task(kind, plan.digest[:16], 0, stage, stage_round + 1, stage, "", plan.digest)
    return Own(site.private, after).before() or {}


def _node(site: Site, attack: Attack | None) -> Node:
    def reply(message: Message) -> Message:
        return reply_to_message(answer(task_from_message(message), site), message)

    return attacking(reply, attack) if attack else reply
