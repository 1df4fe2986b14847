"""One hospital of eight attacks: how far each rule ends from the mean of the seven honest ones. Updates are made up, nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from cxrbase_model.codec import decode, encode
from cxrbase_model.messages import Reply, reply_to_message, task_from_message
from cxrbase_model.plan import Plan, plan_from_text
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read
from cxrbase_model.state import State, norm, subtract
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.attacks import Attack, attacking, colluding, free_rider, gaussian, not_a_number, sign_flip
from sim.grid import LocalGrid, Node
from tests.server.hospitals import start_of

NAMES = "abcdefgh"
SIZE = 0.01  # of each element of an honest update: what all share, and half as much of each hospital's own
ROBUST = ["median", "trimmed-mean", "geometric-median", {"kind": "krum", "selected": 4}]
ATTACKS = {
    "sign flip": sign_flip(10.0),
    "gaussian": gaussian(5, 20.0),
    "colluding": colluding(6, 20.0),
}


def plan(rule: str | dict[str, Any], precision: str = "float32", **federation: Any) -> Plan:
    mapping = {
        "schema": 1,
        "name": "attacked",
        "data": {"findings": ["Nodule"], "image_size": 16},
        "model": {
            "encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        },
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": 1}],
        "federation": {"quorum": 7, "deadline": 5, "join_deadline": 5} | federation,
        "aggregation": {"rule": {"kind": rule} if isinstance(rule, str) else rule},
        "transport": {"broadcast": "float32", "update": precision, "compress": "none"},
    }  # fmt: skip
    return read(Plan, mapping)


def honest(name: str, state: State) -> State:
    """Half of an update is the same in all hospitals."""
    shared, own = generator(1, "shared"), generator(1, "own", name)
    return {
        key: SIZE
        * (torch.randn(state[key].shape, generator=shared) + 0.5 * torch.randn(state[key].shape, generator=own))
        for key in sorted(state)
    }


def hospital(name: str) -> Node:
    def node(message: Message) -> Message:
        task = task_from_message(message)
        reply = Reply(name, task.kind, task.round, task.stage, task.plan_digest)
        if task.kind == "describe":
            described = {"kinds": ["pretrain"], "pictures": {"train": 50}}
            return reply_to_message(Reply(**vars(reply) | {"description": described}), message)
        transport = plan_from_text(task.plan_text).transport
        update = encode(honest(name, decode(task.state, transport.down(task.kind), 10**6)), transport.up)
        return reply_to_message(
            Reply(**vars(reply) | {"examples": 50, "steps": 1, "loss": 1.0, "update": update}), message
        )

    return node


def run(folder: Path, the_plan: Plan, attack: Attack | None, attackers: str = "h") -> RunStore:
    nodes = {
        number: attacking(hospital(name), attack) if attack and name in attackers else hospital(name)
        for number, name in enumerate(NAMES)
    }
    store = RunStore.create(folder, the_plan)
    RoundLoop(Exchange(LocalGrid(nodes)), store, Live(folder)).run()
    return store


def error(store: RunStore, attackers: str = "h") -> float:
    """The distance of the global step from the mean of the honest updates, over that mean's length."""
    before = start_of(store)
    updates = [honest(name, before) for name in NAMES if name not in attackers]
    mean = {key: torch.stack([update[key] for update in updates]).mean(dim=0) for key in before}
    return norm(subtract(subtract(store.stage_state("mae"), before), mean)) / norm(mean)


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_attacker_of_eight_takes_the_mean_along(tmp_path: Path, attack: str) -> None:
    assert error(run(tmp_path, plan("mean"), ATTACKS[attack])) > 1.0


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_a_robust_rule_stays_near_the_honest_mean(tmp_path: Path, rule: str | dict[str, Any], attack: str) -> None:
    assert error(run(tmp_path, plan(rule), ATTACKS[attack])) < 0.25


def test_a_bound_takes_the_loudness_out_of_an_attack(tmp_path: Path) -> None:
    bound = run(tmp_path / "honest", plan("mean"), None).records()[1]["hospitals"][0]["update_norm"]
    store = run(tmp_path / "attacked", plan({"kind": "bounded-mean", "bound": bound}), ATTACKS["sign flip"])
    assert error(store) == pytest.approx(0.25, abs=0.05), "what is left is one vote of eight against"


@pytest.mark.parametrize("rule", ["median", "geometric-median"])
def test_two_that_collude_do_not_take_a_median_along(tmp_path: Path, rule: str) -> None:
    assert error(run(tmp_path, plan(rule), colluding(6, 20.0), "gh"), "gh") < 0.3


def test_a_free_rider_is_admitted_and_dilutes_the_mean_by_its_weight(tmp_path: Path) -> None:
    store = run(tmp_path, plan("mean"), free_rider(3))
    assert error(store) == pytest.approx(1 / 8, rel=0.02)
    assert store.records()[1]["rejected"] == []


@pytest.mark.parametrize("attack", [*ATTACKS.values(), free_rider(3)], ids=[*ATTACKS, "free rider"])
@pytest.mark.parametrize("rule", ["mean", "bounded-mean", "geometric-median"])
def test_who_is_unlike_the_others_in_length_is_left_out_of_the_first_round_under_any_rule(
    tmp_path: Path, rule: str, attack: Attack
) -> None:
    store = run(tmp_path, plan(rule, longest=3.0, shortest=0.05), attack)
    assert [line["site"] for line in store.records()[1]["rejected"]] == ["h"]
    assert error(store) < 0.01


def test_a_sign_flip_of_ordinary_length_passes_every_check_of_norms(tmp_path: Path) -> None:
    checked: dict[str, Any] = {"longest": 3.0, "shortest": 0.05}
    store = run(tmp_path / "mean", plan("mean", **checked), sign_flip(1.0))
    assert store.records()[1]["rejected"] == []
    assert error(store) == pytest.approx(0.25, abs=0.05), "one vote of eight against"
    assert error(run(tmp_path / "median", plan("geometric-median", **checked), sign_flip(1.0))) < 0.1


@pytest.mark.parametrize("attackers", ["h", "gh"])
@pytest.mark.parametrize("rule", ["mean", "geometric-median"])
def test_who_turns_its_update_round_is_left_out_by_its_direction(tmp_path: Path, rule: str, attackers: str) -> None:
    store = run(tmp_path, plan(rule, cosine=0.0, quorum=6), sign_flip(1.0), attackers)
    assert store.records()[1]["rejected"] == [{"site": name, "code": "OPPOSED"} for name in attackers]
    assert error(store, attackers) < 0.01


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_a_nan_never_reaches_a_rule_in_any_packing(tmp_path: Path, precision: str) -> None:
    store = run(tmp_path, plan("mean", precision), not_a_number())
    assert store.records()[1]["rejected"] == [{"site": "h", "code": "NOT_FINITE"}]
    assert error(store) < 0.01
