"""Real hospitals that are sent differences: whoever comes late, forgets, or starts again, the model is the one of whole broadcasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer
from client.arrivals import FOLDER
from client.release import refusal
from client.site import Site, read_site
from cxrbase_model.messages import Code, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from cxrbase_model.state import digest
from server.exchange import Exchange
from server.live import Live
from server.records import Record
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

Event = Callable[[Task, Site], None]  # what happens to a hospital before it answers a task


def plan(*, difference: bool, broadcast: str = "bf16", **federation: object) -> Plan:
    mapping = {
        "schema": 1, "name": "tiny", "seed": 1,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 16},
        "model": {
            "encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        },
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 3, "batch_size": 16, "optimizer": {"lr": 0.01}},
            {"kind": "finetune", "name": "detect", "rounds": 2, "batch_size": 8},
            {"kind": "evaluate", "name": "test"},
        ],
        "federation": {"quorum": 1, "deadline": 60, "join_deadline": 60} | federation,
        "transport": {"broadcast": broadcast, "update": "int8", "compress": "zstd", "difference": difference},
    }  # fmt: skip
    return read(Plan, mapping)


def nothing(task: Task, site: Site) -> None:
    pass


class World:
    """Two hospitals and all tasks that they were given and codes that they answered."""

    def __init__(self, folder: Path, the_plan: Plan, event: Event = nothing) -> None:
        self.folder, self.plan, self.event = folder, the_plan, event
        self.tasks: list[tuple[str, Task]] = []
        self.codes: list[tuple[int, str, Code | None]] = []
        self.sites = [read_site(write_tiny_hospital(folder / name, name, the_plan.data)) for name in ("a", "b")]
        self.grid = LocalGrid({number: self.node(site) for number, site in enumerate(self.sites)})

    def node(self, site: Site) -> Node:
        def respond(message: Message) -> Message:
            task = task_from_message(message)
            self.event(task, site)
            reply = answer(task, site)
            self.tasks.append((site.site, task))
            self.codes.append((task.round, site.site, reply.code))
            return reply_to_message(reply, message)

        return respond

    def run(self, *, resume: bool = False, kill_after: int = -1) -> RunStore:
        def kill(record: Record) -> None:
            if record["round"] == kill_after:
                raise KeyboardInterrupt

        folder = self.folder / "run"
        store = RunStore.resume(folder, self.plan) if resume else RunStore.create(folder, self.plan)
        RoundLoop(Exchange(self.grid), store, Live(folder), expected=2, observers=[kill]).run()
        return store

    def wholes(self) -> list[tuple[int, str]]:
        """Round and hospital of each broadcast that was whole."""
        return [(task.round, name) for name, task in self.tasks if task.round and not task.base_digest]


def final(store: RunStore) -> list[str]:
    return [digest(store.stage_state(name)) for name in ("mae", "detect")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """The run whose broadcasts are all whole."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return World(tmp_path_factory.mktemp("whole"), plan(difference=False)).run()


def test_the_model_is_the_same_to_the_bit_and_fewer_bytes_go_down(tmp_path: Path, undisturbed: RunStore) -> None:
    world = World(tmp_path, plan(difference=True))
    store = world.run()
    assert final(store) == final(undisturbed)
    assert world.wholes() == [(1, "a"), (1, "b")]
    digests = {(task.round, task.state_digest) for _, task in world.tasks if task.round}
    assert len(digests) == 6, "all hospitals of a round start from the same weights"
    for done, before in zip(store.records()[2:], undisturbed.records()[2:], strict=True):
        assert done["bytes_sent"] < before["bytes_sent"]
        assert [line["evaluations"] for line in done["hospitals"] if "evaluations" in line] == [
            line["evaluations"] for line in before["hospitals"] if "evaluations" in line
        ]


@pytest.mark.parametrize("broadcast", ["float32", "int8"])
def test_so_it_is_in_the_other_precisions(tmp_path: Path, broadcast: str) -> None:
    stores = [World(tmp_path / str(each), plan(difference=each, broadcast=broadcast)).run() for each in (False, True)]
    assert final(stores[0]) == final(stores[1])


def test_a_hospital_that_has_lost_what_it_held_gets_the_whole_in_the_same_round(
    tmp_path: Path, undisturbed: RunStore
) -> None:
    lost: list[int] = []

    def lose(task: Task, site: Site) -> None:
        if site.site == "b" and task.round in (3, 4, 6) and task.round not in lost:
            lost.append(task.round)
            next((site.private / FOLDER).iterdir()).unlink()

    world = World(tmp_path, plan(difference=True), lose)
    store = world.run()
    assert final(store) == final(undisturbed)
    assert [record["attempt"] for record in store.records()] == [1] * 7
    assert [record["rejected"] for record in store.records()] == [[]] * 7
    assert [each for each in world.codes if each[2]] == [(number, "b", Code.BASE_MISSING) for number in (3, 4, 6)]
    lines = {line["site"]: line["bytes_sent"] for line in store.records()[3]["hospitals"]}
    assert lines["b"] > lines["a"], "what was sent twice is counted twice"


def test_a_hospital_that_never_can_keep_weights_takes_part_in_every_round(
    tmp_path: Path, undisturbed: RunStore
) -> None:
    def forget(task: Task, site: Site) -> None:
        for path in (site.private / FOLDER).glob("*"):
            path.unlink()

    store = World(tmp_path, plan(difference=True), forget).run()
    assert final(store) == final(undisturbed)
    assert [record["rejected"] for record in store.records()] == [[]] * 7


def test_a_hospital_that_joins_late_gets_the_whole_and_then_differences(tmp_path: Path) -> None:
    finals = []
    for difference in (False, True):
        world = World(tmp_path / str(difference), plan(difference=difference))
        late = world.node(world.sites[1])
        world.grid.nodes = {0: world.grid.nodes[0]}

        def come(task: Task, site: Site, world: World = world, late: Node = late) -> None:
            if task.round == 2:
                world.grid.nodes[1] = late

        world.event = come
        finals.append(final(_alone_at_first(world)))
    assert finals[0] == finals[1]
    assert world.wholes() == [(1, "a"), (3, "b")]


def _alone_at_first(world: World) -> RunStore:
    store = RunStore.create(world.folder / "run", world.plan)
    RoundLoop(Exchange(world.grid), store, Live(store.folder), expected=1).run()
    return store


def test_a_server_that_starts_again_sends_wholes_once_and_ends_in_the_same_bits(
    tmp_path: Path, undisturbed: RunStore
) -> None:
    world = World(tmp_path, plan(difference=True))
    with pytest.raises(KeyboardInterrupt):
        world.run(kill_after=2)
    store = world.run(resume=True)
    assert final(store) == final(undisturbed)
    assert world.wholes() == [(1, "a"), (1, "b"), (3, "a"), (3, "b")]


def test_a_round_that_is_repeated_for_lack_of_a_quorum_ends_in_the_same_bits(
    tmp_path: Path, undisturbed: RunStore
) -> None:
    world = World(tmp_path, plan(difference=True, quorum=2))
    inner = world.grid.nodes[1]
    refused: list[Task] = []

    def once(message: Message) -> Message | None:
        task = task_from_message(message)
        if task.round == 2 and not refused:
            refused.append(task)
            return reply_to_message(refusal("b", task, Code.OUT_OF_MEMORY), message)
        return inner(message)

    world.grid.nodes[1] = once
    store = world.run()
    assert final(store) == final(undisturbed)
    assert store.records()[2]["attempt"] == 2
    assert (2, "b") in world.wholes(), "nobody knows what it holds after a refusal"
