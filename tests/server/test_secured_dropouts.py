"""Hospitals that drop out under secure aggregation: the sum is that of the others, or the round is repeated."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client.app import answer
from client.release import refusal, secured
from client.secure import hold
from client.site import read_site
from cxrbase_model.messages import Code, Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import plan_to_text
from server.broadcast import Broadcasts
from server.exchange import Exchange
from server.rounds import RunFailed
from server.secure_round import SecureRound
from server.store import RunStore
from server.unmask import NOTE
from sim.grid import LocalGrid
from sim.tiny import write_tiny_hospital
from tests.server.secured import SECURE, STAGES, apart, plan, refusing_at, run, silent_at, stated, statuses

pytestmark = pytest.mark.usefixtures(
    "clock"
)  # deadlines are of its time, so that those who are silent cost none of ours


@pytest.mark.parametrize("stage", ["pretrain", *STAGES])
def test_a_hospital_that_drops_out_is_done_without(tmp_path: Path, stage: str) -> None:
    the_plan = plan()
    cut = run(tmp_path / "cut", the_plan, spoil=silent_at(stage, "b"))
    counts = stage == "secure-unmask"  # its update had come
    assert statuses(cut)["b"] == (("admitted", None) if counts else ("silent", "NO_REPLY"))
    assert [cut.records()[1]["attempt"], cut.records()[1]["secure"]["survivors"]] == [1, 4 if counts else 3]
    plain = run(tmp_path / "plain", plan(secure=None), "abcd" if counts else "acd")
    assert apart(cut, plain) <= stated(the_plan, 4, 3 * 40 / 100)


def test_half_of_eight_may_drop_out_one_after_the_other_less_one(tmp_path: Path) -> None:
    gone = {"secure-shares": "a", "secure-masked": "bc"}

    def leave(name: str, task: Task, reply: Reply) -> Reply | None:
        return None if name in gone.get(task.kind, "") else reply

    the_plan = plan()
    store = run(tmp_path / "cut", the_plan, "abcdefgh", leave)
    secure = store.records()[1]["secure"]
    assert [secure[key] for key in ("members", "needed", "shared", "survivors")] == [8, 5, 7, 5]
    plain = run(tmp_path / "plain", plan(secure=None), "defgh")
    assert apart(store, plain) <= stated(the_plan, 5, 5 * 40 / 100)


@pytest.mark.parametrize("stage", STAGES[:2])
def test_a_round_with_too_few_survivors_is_repeated_with_new_keys(tmp_path: Path, stage: str) -> None:
    adverts: list[bytes] = []
    asked: list[str] = []

    def leave_once(name: str, task: Task, reply: Reply) -> Reply | None:
        if task.kind == "pretrain" and name == "a":
            adverts.append(reply.update)
        if task.kind == stage and name == "b" and len(adverts) == 1:
            return refusal(name, task, Code.FAILED)
        asked.append(task.kind)
        return reply

    store = run(tmp_path, plan(), "abc", leave_once)
    assert store.records()[1]["attempt"] == 2
    assert len(set(adverts)) == 2
    assert asked.count("secure-unmask") >= 2
    assert set(statuses(store).values()) == {("admitted", None)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_whose_survivors_stay_too_few_ends_the_run_with_a_reason(tmp_path: Path, stage: str) -> None:
    with pytest.raises(RunFailed, match=r"round 1 \(mae\) had no quorum of 3 in 2 attempts"):
        run(tmp_path, plan(), "abc", refusing_at(stage, "b", "c"))
    assert RunStore(tmp_path / "run", plan()).next_round == 1


def test_a_server_that_stops_between_unmasking_and_commit_asks_the_same_survivors_again(tmp_path: Path) -> None:
    the_plan = plan()

    def stop(*_: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureRound, "_open", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, the_plan, spoil=silent_at("secure-masked", "d"))
    assert json.loads((tmp_path / "run" / NOTE).read_text()) == {"round": 1, "survivors": ["a", "b", "c"]}
    store = run(tmp_path, the_plan, resume=True)
    record = store.records()[1]
    assert [line["site"] for line in record["hospitals"]] == ["a", "b", "c"]
    assert [record["secure"][key] for key in ("members", "needed", "survivors")] == [3, 3, 3]
    plain = run(tmp_path / "plain", plan(secure=None), "abc")
    assert apart(store, plain) <= stated(the_plan, 3, 3 * 40 / 100)


@pytest.mark.slow
def test_fifty_hospitals_of_which_ten_drop_out(tmp_path: Path) -> None:
    names = [f"h{number:02}" for number in range(50)]
    the_plan = plan(
        secure=SECURE | {"hospitals": 50, "deadline": 3000.0}, federation={"quorum": 40, "weighting": "uniform"}
    )
    task = Task("pretrain", "run", 1, "mae", 1, "mae", plan_to_text(the_plan), the_plan.digest, "weights")
    sites = {name: read_site(write_tiny_hospital(tmp_path / name, name, the_plan.data)) for name in names}

    def respond(name: str, message: Message) -> Message:
        asked = task_from_message(message)
        if asked.kind == "secure-masked" and int(name[1:]) % 5 == 0:
            return reply_to_message(refusal(name, asked, Code.FAILED), message)
        if asked.kind != "pretrain":
            return reply_to_message(answer(asked, sites[name]), message)
        update = {"w": torch.full((1000,), int(name[1:]) / 100)}
        letter = hold(asked, sites[name], the_plan, update, examples=1, loss=0.5)
        return reply_to_message(secured(name, asked, letter), message)

    exchange = Exchange(LocalGrid({number: partial(respond, name) for number, name in enumerate(names)}))
    before = {"w": torch.zeros(1000)}
    broadcast = Broadcasts(tmp_path, the_plan.transport).next(task, before, names)
    attempt = SecureRound(exchange, the_plan, broadcast, before, tmp_path)
    for number, message in exchange.ask(dict.fromkeys(range(50), broadcast.asked), 3000.0):
        attempt.intake.take(names[number], message, {})
    assert attempt.finish({name: number for number, name in enumerate(names)})
    assert [attempt.told[key] for key in ("members", "needed", "survivors")] == [50, 40, 40]
    mean = sum(number / 100 for number in range(50) if number % 5) / 40
    assert torch.allclose(attempt.result()["w"], torch.tensor(mean), atol=1e-6)
