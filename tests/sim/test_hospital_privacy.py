"""Real hospitals of random pictures under hospital-level privacy: every stage, both who add the noise, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.app import answer
from client.site import read_site
from cxrbase_model.messages import Reply, Task
from cxrbase_model.state import State, subtract
from server.exchange import Exchange
from server.live import Live
from server.report import summary_text, write_report
from server.rounds import RoundLoop
from server.spent import epsilon
from server.store import RunStore
from sim.grid import LocalGrid
from sim.tiny import write_tiny_hospital
from tests.server.hospitals import start_of
from tests.sim.test_hospitals_and_rules import node, plan

ADAPTIVE = {"clip": 1e-3, "noise_multiplier": 0.4, "adaptive": {"lr": 0.5, "count_noise": 2.0}}


EXACT = {"broadcast": "float32", "update": "float32", "compress": "none"}


def run(folder: Path, privacy: dict[str, Any], **sections: Any) -> RunStore:
    federation = {"quorum": 3, "deadline": 60, "join_deadline": 60, "weighting": "uniform"}
    stages = [
        {"kind": "pretrain", "name": "mae", "rounds": 2, "batch_size": 8, "mask_ratio": 0.5},
        {"kind": "finetune", "name": "detect", "rounds": 2, "batch_size": 8, "trains": "head"},
        {"kind": "evaluate", "name": "test"},
    ]
    the_plan = plan(federation=federation, stages=stages, aggregation={"privacy": privacy} | sections, transport=EXACT)
    sites = [read_site(write_tiny_hospital(folder / name, name, the_plan.data)) for name in ("a", "b", "c")]
    store = RunStore.create(folder / "run", the_plan)
    grid = LocalGrid({number: node(site) for number, site in enumerate(sites)})
    RoundLoop(Exchange(grid), store, Live(folder / "run")).run()
    return store


def moved(store: RunStore, stage: str) -> State:
    return subtract(store.stage_state(stage), start_of(store, stage))


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        (ADAPTIVE, "nothing is promised against the server itself"),
        ({"clip": 1e-3, "noise_multiplier": 0.4, "noise": "hospitals"}, "the server sees updates with one share"),
    ],
    ids=["server", "hospitals"],
)
def test_a_whole_run_tells_its_epsilon_and_spares_what_no_hospital_trains(
    tmp_path: Path, privacy: dict[str, Any], words: str
) -> None:
    store = run(tmp_path, privacy, step={"kind": "fedavgm"})
    records = store.records()
    assert [record["rejected"] for record in records] == [[]] * 6
    told = [record.get("privacy", {}).get("epsilon") for record in records]
    assert told == [None, *(epsilon([0.4] * count, 1e-5) for count in (1, 2, 3, 4)), None]
    if "adaptive" in privacy:
        assert records[1]["privacy"]["next_clip"] == records[2]["privacy"]["clip"] != 1e-3
        assert records[3]["privacy"]["clip"] == 1e-3, "another stage, whose updates have other lengths"
    changed = {name for name, tensor in moved(store, "detect").items() if bool(tensor.any())}
    assert changed == {"head.weight", "head.bias", "head_norm.weight", "head_norm.bias"}, (
        "noise on a frozen encoder would only spoil it"
    )
    write_report(store.folder)
    page = (store.folder / "report.html").read_text(encoding="utf-8")
    text = f"ospital-level epsilon = {told[4]:.3g} at delta = 1e-05 after round 4"
    assert text in page
    assert words in page
    assert "seeded" not in page.split("<h2>To repeat it</h2>")[0]
    assert text in summary_text(write_report(store.folder))


def test_the_same_task_leaves_with_the_same_noise(tmp_path: Path) -> None:
    """A second draw of the noise on the same update would tell more of it than was counted."""
    replies: dict[str, list[Reply]] = {}
    store = run(tmp_path, {"noise": "hospitals"})
    site = read_site(tmp_path / "a" / "SITE.yaml")
    for number in (1, 2):
        task = _task(store, number)
        replies[str(number)] = [answer(task, site) for _ in range(2)]
    for first, second in replies.values():
        assert first.code is None
        assert first.update == second.update


def _task(store: RunStore, number: int) -> Task:
    from cxrbase_model.codec import pack
    from cxrbase_model.plan import plan_to_text
    from cxrbase_model.state import digest

    before = start_of(store)
    return Task(
        "pretrain", "again", number, "mae", number, "mae", plan_to_text(store.plan), store.plan.digest, digest(before),
        pack(before), clip=1.0,
    )  # fmt: skip
