"""Secure aggregation gives the plain mean; who sends what is no answer is left out, and a sum that cannot be right is noticed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxrbase_model.messages import Reply, Task
from cxrbase_model.settings import SettingsError
from server.rounds import RunFailed
from tests.server.secured import SECURE, apart, plan, run, stated, statuses, weights

pytestmark = pytest.mark.usefixtures(
    "clock"
)  # deadlines are of its time, so that those who are silent cost none of ours


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
