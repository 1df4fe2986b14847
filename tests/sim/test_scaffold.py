"""SCAFFOLD over whole runs: hospitals' own code for variates on a problem whose optimum is known, and real hospitals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client.policy import check_task
from client.rehearsal import rehearse
from client.site import read_site
from client.variates import FOLDER, Variates, forget_variates
from cxrbase_model.codec import encode
from cxrbase_model.features import build_objective
from cxrbase_model.messages import Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan, PretrainStage
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import load_state, state_of, subtract
from cxrbase_model.variates import PREFIX, steered
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital
from tests.server.hospitals import short_plan, start_of
from tests.sim.test_hospitals_and_rules import held_out, node, plan

RATE, STEPS = 0.1, 10
CURVES = {"a": (1.0, 0.0), "b": (4.0, 1.0), "c": (2.0, -1.0)}  # f(w) = curvature / 2 x (w - best)^2, for each weight
Change = Callable[[Task, Reply], Reply | None]


def planned(rounds: int, *, scaffold: bool = True, step: str = "add", **federation: Any) -> Plan:
    base = {"weighting": "uniform", "quorum": 2, "deadline": 60, "join_deadline": 60} | federation
    mapping = to_mapping(short_plan(**base)) | {"aggregation": {"scaffold": scaffold, "step": {"kind": step}}}
    mapping["stages"][0]["rounds"] = rounds
    return read(Plan, mapping)


def quadratic(name: str, private: Path, change: Change = lambda task, reply: reply) -> Node:
    """A hospital that descends its own curve by SGD, with the plan's network for its weights."""
    curvature, best = CURVES[name]

    def respond(message: Message) -> Message | None:
        task = task_from_message(message)
        reply = Reply(name, task.kind, task.round, task.stage, task.plan_digest)
        if task.kind == "describe":
            told = {"kinds": ["pretrain"], "pictures": {"train": 10}}
            return reply_to_message(replace(reply, description=told), message)
        work = check_task(task, 10**6)
        assert isinstance(work.stage, PretrainStage)
        model = build_objective(work.plan, work.stage)
        load_state(model, work.state)
        variates = Variates(private / name, task, work.control)
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=RATE)
        correction = variates.correction(model, work.plan.aggregation)
        with steered(model, correction or {}) as path:
            for _ in range(STEPS):
                for parameter in trained:
                    parameter.grad = curvature * (parameter.detach() - best)
                optimizer.step()
        if correction is not None:
            variates.learned(path.mean())
        update = subtract(state_of(model), work.state) | variates.leaving()
        changed = change(
            task,
            replace(
                reply,
                control_round=variates.going_on_from,
                examples=10,
                steps=STEPS,
                loss=1.0,
                update=encode(update, work.plan.transport.up),
            ),
        )
        return reply_to_message(changed, message) if changed is not None else None

    return respond


def run(folder: Path, the_plan: Plan, nodes: list[Node], *, resume: bool = False, kill_after: int = -1) -> RunStore:
    def kill(record: dict[str, Any]) -> None:
        if record["round"] == kill_after:
            raise KeyboardInterrupt

    store = RunStore.resume(folder / "run", the_plan) if resume else RunStore.create(folder / "run", the_plan)
    grid = LocalGrid(dict(enumerate(nodes, start=1)))
    RoundLoop(Exchange(grid), store, Live(folder / "run"), observers=[kill]).run()
    return store


def nodes(folder: Path, names: str = "abc", change: Change = lambda task, reply: reply) -> list[Node]:
    return [quadratic(name, folder, change) for name in names]


def weight(store: RunStore) -> float:
    return float(store.stage_state("mae")["decoder_norm.weight"].double().mean())


def optimum(names: str) -> float:
    return sum(CURVES[n][0] * CURVES[n][1] for n in names) / sum(CURVES[n][0] for n in names)


def test_the_plain_mean_drifts_and_scaffold_reaches_the_common_optimum(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", planned(15, scaffold=False), nodes(tmp_path / "plain", "ab"))
    shrunk = [(1 - RATE * CURVES[n][0]) ** STEPS for n in "ab"]
    drifted = sum((1 - s) * CURVES[n][1] for s, n in zip(shrunk, "ab", strict=True)) / sum(1 - s for s in shrunk)
    assert weight(plain) == pytest.approx(drifted, abs=3e-3), "computed by hand: a fixed point that is nobody's optimum"
    assert abs(drifted - optimum("ab")) > 0.15
    steered = run(tmp_path / "steered", planned(15), nodes(tmp_path / "steered", "ab"))
    assert weight(steered) == pytest.approx(optimum("ab"), abs=3e-3)


def test_each_round_is_that_of_the_paper(tmp_path: Path) -> None:
    """Algorithm 1 with option II on one number, which all weights follow from wherever they started."""
    store = run(tmp_path, planned(3), nodes(tmp_path))
    start = float(start_of(store)["decoder_norm.weight"][0])
    x, c, own = start, 0.0, dict.fromkeys("abc", 0.0)
    for _ in range(3):
        ends = {}
        for name, (curvature, best) in CURVES.items():
            y = x
            for _ in range(STEPS):
                y -= RATE * (curvature * (y - best) - own[name] + c)
            ends[name] = (y - x, own[name] - c + (x - y) / (STEPS * RATE))
        c += sum(after - own[name] for name, (_, after) in ends.items()) / 3
        x += sum(move for move, _ in ends.values()) / 3
        own = {name: after for name, (_, after) in ends.items()}
    found = store.stage_state("mae")["decoder_norm.weight"]
    torch.testing.assert_close(found, torch.full_like(found, x), rtol=1e-5, atol=1e-6)
    memory = store.memory(3)[f"{PREFIX}decoder_norm.weight"]
    torch.testing.assert_close(memory, torch.full_like(memory, c), rtol=1e-5, atol=1e-6)


def test_a_reply_that_was_lost_does_not_bend_the_optimum(tmp_path: Path) -> None:
    """The hospital has moved its variate on, the server has not; unless both go back, their difference would stay for good."""

    def lossy(task: Task, reply: Reply) -> Reply:
        lost = reply.site == "b" and task.round in (1, 3, 4, 9)
        return replace(reply, examples=-1) if lost else reply

    store = run(tmp_path, planned(20), nodes(tmp_path, "abc", lossy))
    assert [line["site"] for record in store.records() for line in record["rejected"]] == ["b"] * 4
    assert weight(store) == pytest.approx(optimum("abc"), abs=3e-3)
    for folder in (tmp_path / "b" / FOLDER).iterdir():
        assert len(list(folder.iterdir())) == 2, "what the server has, and the last"


def test_a_hospital_that_joins_late_moves_the_optimum_to_that_of_all(tmp_path: Path) -> None:
    def late(task: Task, reply: Reply) -> Reply:
        return replace(reply, examples=-1) if reply.site == "c" and task.round < 4 else reply

    store = run(tmp_path, planned(20), nodes(tmp_path, "abc", late))
    assert weight(store) == pytest.approx(optimum("abc"), abs=3e-3)


def test_where_one_hospital_has_forgotten_its_variate_all_begin_again(tmp_path: Path) -> None:
    """What the server's mean still has of it could not be taken out, and would bend the optimum."""

    def forgetful(task: Task, reply: Reply) -> Reply:
        if (task.round, reply.site) == (5, "c"):
            forget_variates(tmp_path / "c")
        return reply

    store = run(tmp_path, planned(20), nodes(tmp_path, "abc", forgetful))
    assert [record.get("variates") for record in store.records()[1:9]] == ["kept"] * 5 + ["anew"] + ["kept"] * 2
    assert weight(store) == pytest.approx(optimum("abc"), abs=3e-3)


@pytest.mark.parametrize("step", ["add", "fedavgm"])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path: Path, step: str) -> None:
    whole = run(tmp_path / "whole", planned(5, step=step), nodes(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", planned(5, step=step), nodes(tmp_path / "cut"), kill_after=2)
    resumed = run(tmp_path / "cut", planned(5, step=step), nodes(tmp_path / "cut"), resume=True)
    digests = [[record.get("state_digest") for record in store.records()] for store in (whole, resumed)]
    assert digests[0] == digests[1]


def test_norms_are_of_the_update_alone(tmp_path: Path) -> None:
    """Gradients here are far longer than what they do to the weights in a round of the bound."""
    with_bound = planned(2, max_update_norm=1e4)
    records = run(tmp_path, with_bound, nodes(tmp_path, "ab")).records()
    plain = run(tmp_path / "plain", planned(2, scaffold=False), nodes(tmp_path / "plain", "ab")).records()
    norms = [[line["update_norm"] for line in found[1]["hospitals"]] for found in (records, plain)]
    assert norms[0] == norms[1], "the first round's variates are zero"
    sizes = [found[1]["bytes_received"] for found in (records, plain)]
    assert 1.8 < sizes[0] / sizes[1] < 2.1


def test_the_server_holds_one_sum_whatever_the_number_of_hospitals(tmp_path: Path) -> None:
    files: list[list[int]] = []

    def look(task: Task, reply: Reply) -> Reply:
        if task.kind == "pretrain":
            files.append([path.stat().st_size for path in (tmp_path / "run" / "spool").iterdir()])
        return reply

    store = run(tmp_path, planned(1), nodes(tmp_path, "abc", look))
    numbers = sum(tensor.numel() for tensor in (store.stage_state("mae") | store.memory(1)).values())
    assert files == [[8 * numbers]] * 3, "64-bit sums of the weights and of the variates"


def real(**sections: Any) -> Plan:
    federation = {"quorum": 3, "deadline": 60, "join_deadline": 60, "weighting": "uniform"}
    return plan(federation=federation, **sections)


def real_run(folder: Path, the_plan: Plan) -> RunStore:
    sites = [read_site(write_tiny_hospital(folder / name, name, the_plan.data)) for name in ("a", "b", "c")]
    store = RunStore.create(folder / "run", the_plan)
    RoundLoop(Exchange(LocalGrid({i: node(site) for i, site in enumerate(sites)})), store, Live(folder / "run")).run()
    return store


def test_real_hospitals_with_adamw_learn_under_it_and_the_first_round_is_the_plain_one(tmp_path: Path) -> None:
    aggregation = {
        "scaffold": True,
        "keep_local": ["decoder_*"],
        "proximal": 0.01,
        "step": {"kind": "fedavgm", "momentum": 0.1},
    }
    stored = real_run(
        tmp_path / "with", real(aggregation=aggregation, transport={"broadcast": "bf16", "update": "int8"})
    )
    records = stored.records()
    assert [record["rejected"] for record in records] == [[]] * 6
    assert held_out(records)[-1] < held_out(records)[0]
    exact = [
        real_run(
            tmp_path / str(on),
            real(
                aggregation={"scaffold": on},
                transport={"broadcast": "float32", "update": "float32", "compress": "none"},
            ),
        ).records()
        for on in (True, False)
    ]
    digests = [[record.get("state_digest") for record in found] for found in exact]
    assert digests[0][1] == digests[1][1]
    assert digests[0][2] != digests[1][2]
    assert held_out(exact[0])[-1] < held_out(exact[0])[0]
    names = set(stored.memory(3)) - {name for name in stored.memory(3) if not name.startswith(PREFIX)}
    assert names
    assert not any(name.startswith(f"{PREFIX}decoder_") for name in names), "what stays in the hospital has no variate"


def test_a_rehearsal_brings_variates_and_leaves_none(tmp_path: Path) -> None:
    the_plan = real(aggregation={"scaffold": True})
    site = read_site(write_tiny_hospital(tmp_path / "a", "a", the_plan.data))
    found = list(rehearse(the_plan, site))
    assert [each.code for each in found] == [None] * 3
    assert not list(itertools.chain(*(folder.iterdir() for folder in (site.private / FOLDER).glob("*"))))
