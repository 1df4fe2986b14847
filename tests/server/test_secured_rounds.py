"""Real hospitals of random pictures under secure aggregation: the server gets the plain mean, and goes on without those who drop out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client.app import answer
from client.release import refusal, secured
from client.secure import hold
from client.site import Site, read_site
from cxrbase_model.codec import unpack
from cxrbase_model.messages import Code, Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.secure.ring import rings_of
from cxrbase_model.settings import SettingsError, read
from cxrbase_model.state import State
from server.broadcast import Broadcasts
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop, RunFailed
from server.secure_round import SecureRound
from server.store import RunStore
from server.unmask import NOTE
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

SECURE = {"threshold": 2, "hospitals": 8, "examples": 100, "deadline": 60.0}
STAGES = ("secure-shares", "secure-masked", "secure-unmask")

pytestmark = pytest.mark.usefixtures(
    "clock"
)  # deadlines are of its time, so that those who are silent cost none of ours

Spoil = Callable[[str, Task, Reply], Reply | None]


def plan(rounds: int = 1, secure: dict[str, Any] | None = SECURE, **sections: Any) -> Plan:
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
    def respond(message: Message) -> Message | None:
        task = task_from_message(message)
        reply = spoil(site.site, task, answer(task, site))
        return None if reply is None else reply_to_message(reply, message)

    return respond


def honest(name: str, task: Task, reply: Reply) -> Reply | None:
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
    return unpack((store.folder / "stages" / "mae.safetensors").read_bytes())


def apart(one: RunStore, other: RunStore) -> float:
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first if first[name].numel())


def stated(the_plan: Plan, survivors: int, share: float) -> float:
    """The stated error of a mean, and what float32 adds in weights of magnitude two at most."""
    return survivors / (2 * rings_of(the_plan, None).body.scale * share) + 2.0**-22


def statuses(store: RunStore, number: int = 1) -> dict[str, tuple[str, str | None]]:
    return {line["site"]: (line["status"], line["code"]) for line in store.records()[number]["hospitals"]}


@pytest.mark.parametrize(
    ("weighting", "bits", "step"),
    [
        ("examples", 32, "add"),
        ("examples", 16, "add"),
        ("uniform", 32, "add"),
        ("uniform", 16, "add"),
        ("examples", 32, "fedadam"),
    ],
)
def test_the_secured_mean_is_the_plain_one_within_the_stated_error(
    tmp_path: Path, weighting: str, bits: int, step: str
) -> None:
    how: dict[str, Any] = {"federation": {"weighting": weighting}, "aggregation": {"step": {"kind": step}}}
    secured_plan = plan(secure=SECURE | {"bits": bits, "span": 0.5}, **how)
    hidden = run(tmp_path / "secured", secured_plan)
    plain = run(tmp_path / "plain", plan(secure=None, **how))
    record = hidden.records()[1]
    share = {"examples": 4 * 40 / 100, "uniform": 4.0}[weighting]
    assert record["secure"]["weight"] == pytest.approx(share, rel=1e-5)
    assert record["loss"] == pytest.approx(plain.records()[1]["loss"], rel=1e-4)
    assert record["metrics"] == plain.records()[1]["metrics"]
    if step == "add":
        assert 0 < apart(hidden, plain) <= stated(secured_plan, 4, share)
    else:
        assert apart(hidden, plain) < 1e-3, "a step of FedAdam is 0.01 or so, and magnifies what is small"


def test_the_server_is_told_nothing_of_one_hospital_but_its_names_and_rates(tmp_path: Path) -> None:
    seen: list[tuple[str, Reply]] = []

    def look(name: str, task: Task, reply: Reply) -> Reply:
        seen.append((task.kind, reply))
        return reply

    store = run(tmp_path, plan(), spoil=look)
    training = [reply for kind, reply in seen if kind == "pretrain"]
    assert len(training) == 4
    for reply in training:
        assert (reply.examples, reply.steps, reply.loss) == (0, 0, None)
        assert reply.metrics.keys() == {"validation_loss"}
        assert json.loads(reply.update).keys() == {"seal", "mask", "seed", "signature"}
    for line in store.records()[1]["hospitals"]:
        assert (line["examples"], line["loss"], line["update_norm"]) == (0, None, None)
    numbers = sum(each.numel() for each in weights(store).values())
    masked = [reply for kind, reply in seen if kind == "secure-masked"]
    assert [len(reply.update) for reply in masked] == [12 + 4 * numbers] * 4
    assert all(not list((tmp_path / name / "private").glob("outbox/*")) for name in "abcd")
    sent = sum(line["bytes_received"] for line in store.records()[1]["hospitals"])
    assert sent < 1.01 * 4 * 4 * numbers


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


def test_a_hospital_that_sends_what_is_no_answer_is_left_out(tmp_path: Path) -> None:
    def spoil(name: str, task: Task, reply: Reply) -> Reply:
        wrong = {
            ("a", "pretrain"): replace(reply, update=b"{}"),
            ("b", "secure-shares"): replace(reply, update=b"{}"),
            ("c", "secure-masked"): replace(reply, update=reply.update[:-1]),
            ("d", "secure-masked"): replace(reply, site="e"),
            ("e", "secure-unmask"): replace(reply, update=b"[]"),
        }
        return wrong.get((name, task.kind), reply)

    store = run(tmp_path, plan(secure=SECURE | {"hospitals": 10}), "abcdefghij", spoil)
    assert statuses(store) == {
        "a": ("rejected", "MALFORMED"), "b": ("rejected", "MALFORMED"), "c": ("rejected", "MALFORMED"),
        "d": ("rejected", "IDENTITY"), "e": ("admitted", None), "f": ("admitted", None), "g": ("admitted", None),
        "h": ("admitted", None), "i": ("admitted", None), "j": ("admitted", None),
    }  # fmt: skip


def test_a_hospital_that_takes_anothers_keys_is_left_out(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def copy(name: str, task: Task, reply: Reply) -> Reply:
        if task.kind == "pretrain":
            seen.append(reply.update)
            return replace(reply, update=seen[0])
        return reply

    with pytest.raises(RunFailed, match="SECURE"):
        run(tmp_path, plan(federation={"repeats": 0}), spoil=copy)


def test_a_vector_of_noise_is_noticed_in_the_sum_though_nobody_knows_whose_it_was(tmp_path: Path) -> None:
    def noise(name: str, task: Task, reply: Reply) -> Reply:
        wrong = name == "c" and task.kind == "secure-masked"
        return replace(reply, update=os.urandom(len(reply.update))) if wrong else reply

    with pytest.raises(RunFailed, match="the sum of the updates cannot be right"):
        run(tmp_path, plan(), spoil=noise)


def test_an_update_beyond_the_span_stays_in_its_hospital(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="SPAN"):
        run(tmp_path, plan(secure=SECURE | {"span": 1e-6}, federation={"repeats": 0}))


def test_what_hospitals_keep_for_themselves_stays_there(tmp_path: Path) -> None:
    how: dict[str, Any] = {"aggregation": {"keep_local": ["decoder_*"]}, "rounds": 2}
    hidden = run(tmp_path / "secured", plan(**how))
    plain = run(tmp_path / "plain", plan(secure=None, **how))
    first, second = weights(hidden), weights(plain)
    kept = [name for name in first if name.startswith("decoder_")]
    assert kept
    assert all((first[name] == second[name]).all() for name in kept)
    assert apart(hidden, plain) < 1e-3, "training magnifies rounding"
    assert (tmp_path / "secured" / "a" / "private" / "own").is_dir()


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"aggregation": {"rule": {"kind": "median"}}}, "aggregation.rule: expected mean where aggregation.secure is set, since median"),
        ({"aggregation": {"rule": {"kind": "angle-mean"}}}, "since angle-mean looks at single updates"),
        ({"aggregation": {"rule": {"kind": "bounded-mean"}}}, "since bounded-mean looks at single updates"),
        ({"federation": {"quorum": 2}}, "federation.quorum: expected 3 to 8 by aggregation.secure, found 2"),
        ({"federation": {"outlier": 10}}, "federation.outlier: expected none where aggregation.secure is set"),
        ({"federation": {"quorum": 3, "longest": 3}}, "federation.longest: expected none where aggregation.secure is set"),
        ({"federation": {"quorum": 3, "shortest": 0.1}}, "federation.shortest: expected none where aggregation.secure is set"),
        ({"federation": {"quorum": 3, "cosine": 0}}, "federation.cosine: expected none where aggregation.secure is set"),
        ({"federation": {"max_update_norm": 1}}, "federation.max_update_norm: expected none"),
        ({"transport": {"update": "int8"}}, "transport.update: expected float32 where aggregation.secure is set"),
        ({"secure": SECURE | {"threshold": 4}}, "federation.quorum: expected 4 to 8 by aggregation.secure, found 3"),
    ],
)  # fmt: skip
def test_a_plan_that_asks_for_what_a_sum_cannot_give_is_refused_by_name(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        plan(**sections)
    assert told in str(refused.value)


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


PRIVATE = {"clip": 0.5, "noise_multiplier": 0.0}
UNIFORM = {"weighting": "uniform"}


def test_clipped_updates_have_the_same_sum_under_masks(tmp_path: Path) -> None:
    how: dict[str, Any] = {"federation": UNIFORM, "aggregation": {"privacy": PRIVATE}}
    the_plan = plan(**how)
    hidden, plain = run(tmp_path / "hidden", the_plan), run(tmp_path / "plain", plan(secure=None, **how))
    told, known = hidden.records()[1]["privacy"], plain.records()[1]["privacy"]
    assert [told[key] for key in ("clip", "divisor")] == [known[key] for key in ("clip", "divisor")] == [0.5, 4]
    numbers = sum(each.numel() for each in weights(hidden).values())
    coarse = numbers**0.5 * 8 / 2**32  # what is clipped away so that rounding to steps cannot lengthen an update
    assert apart(hidden, plain) <= stated(the_plan, 4, 4.0) + 0.5 * (coarse + 2e-5)


def test_the_noise_of_hospitals_is_in_the_sum_and_the_count_of_short_updates_is_learned(tmp_path: Path) -> None:
    private = {
        "clip": 50.0,
        "noise_multiplier": 0.02,
        "noise": "hospitals",
        "adaptive": {"count_noise": 1.0, "quantile": 0.5},
    }
    how: dict[str, Any] = {"federation": UNIFORM | {"quorum": 4}, "aggregation": {"privacy": private}}
    noised = run(tmp_path / "noised", plan(**how))
    how["aggregation"] = {"privacy": private | {"noise_multiplier": 0.0}}
    quiet = run(tmp_path / "quiet", plan(**how))
    first, second = weights(noised), weights(quiet)
    noise = torch.cat([(first[name] - second[name]).flatten() for name in first if first[name].numel()])
    noise = noise[noise != 0]
    made = the_noise(plan(**how | {"aggregation": {"privacy": private}}))
    assert len(noise) > 100_000
    assert float(noise.std()) == pytest.approx(made * 50.0 / 4, rel=0.02)
    told, known = noised.records()[1]["privacy"], quiet.records()[1]["privacy"]
    assert known["short"] == pytest.approx(1.0, abs=1e-6), "no update is as long as the clip"
    assert known["next_clip"] == pytest.approx(50.0 * math.exp(-0.2 * 0.5), rel=1e-6)
    assert 0 < abs(told["short"] - 1.0) < 0.1


def the_noise(the_plan: Plan) -> float:
    """Standard deviation of the sum's noise, in clips, of four hospitals that add their shares."""
    privacy = the_plan.aggregation.privacy
    assert privacy is not None
    return privacy.share(the_plan.federation.quorum) * 4**0.5
