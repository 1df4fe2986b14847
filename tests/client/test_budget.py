"""Nothing trains beyond the budget, whoever asks and how often, and whatever dies in between counts as spent."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.accounting import Account, epsilon
from client.app import answer
from client.budget import ledger_of, rehearsal, reserve, standing, told, told_left
from client.ledger import LedgerError
from client.outbox import Outbox
from client.policy import Refused
from client.release import leave
from client.site import Policy, Site
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.privacy import Mechanism
from tests.client.ledgering import PLAN, TASK, promised, reply_to, run, site_in
from tests.client.pld import loss_epsilon, renyi_epsilon
from tests.client.serving import Authority, joined

ONE = Mechanism("patient", 1.0, 0.05, 20)
DELTA = 1e-5


def cost(count: int) -> float:
    return epsilon([ONE] * count, "patient", DELTA)


def kinds(site: Site) -> list[str]:
    return [entry.kind for entry in ledger_of(site).entries()]


def test_reservations_add_up_until_the_budget_is_spent(tmp_path: Path) -> None:
    site = site_in(tmp_path, epsilon=cost(3))
    for count in (1, 2, 3):
        reserve(site, replace(TASK, round=count), ONE)
        assert standing(site).spent == pytest.approx(cost(count))
    with pytest.raises(Refused) as caught:
        reserve(site, replace(TASK, round=4), ONE)
    assert caught.value.code is Code.BUDGET
    lines = ledger_of(site).entries()
    assert [line.kind for line in lines] == ["reserve"] * 3
    assert [line.before for line in lines] == [pytest.approx(cost(count)) for count in (0, 1, 2)]
    assert [line.after for line in lines] == [pytest.approx(cost(count)) for count in (1, 2, 3)]
    assert (lines[0].noise, lines[0].rate, lines[0].steps, lines[0].unit) == (1.0, 0.05, 20, "patient")
    assert (lines[0].accountant, lines[0].delta, lines[0].plan) == ("RDP", DELTA, TASK.plan_digest)
    assert standing(site).left == pytest.approx(0.0)


def test_the_budget_is_for_life_over_runs_plans_and_stages(tmp_path: Path) -> None:
    site = site_in(tmp_path, epsilon=cost(2))
    reserve(site, TASK, ONE)
    reserve(site, replace(TASK, run="other", stage="else", round=9, plan_digest="f" * 64), ONE)
    with pytest.raises(Refused):
        reserve(site, replace(TASK, run="third"), ONE)
    reserve(replace(site, policy=replace(site.policy, epsilon=cost(3))), replace(TASK, run="third"), ONE)


def test_a_budget_of_nothing_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        reserve(site_in(tmp_path, epsilon=0.0), TASK, Mechanism("patient", 1000.0, 0.001, 1))


def test_after_a_release_without_a_guarantee_no_budget_can_be_kept(tmp_path: Path) -> None:
    free = site_in(tmp_path)
    without = replace(PLAN, privacy=None)
    plain = replace(TASK, plan_text=plan_to_text(without), plan_digest=without.digest)
    leave(reply_to(plain), plain, free, 0)
    assert kinds(free) == ["unprotected"]
    assert standing(free).spent == math.inf
    with pytest.raises(Refused) as caught:
        reserve(site_in(tmp_path, epsilon=1000.0), TASK, ONE)
    assert caught.value.code is Code.BUDGET
    reserve(free, TASK, ONE)
    assert ledger_of(free).entries()[-1].after == math.inf


def test_units_are_accounted_each_on_its_own(tmp_path: Path) -> None:
    picture = replace(ONE, unit="picture")
    with pytest.raises(Refused):
        reserve(site_in(tmp_path, epsilon=1000.0), TASK, picture)
    reserve(site_in(tmp_path, epsilon=1000.0, unit="picture"), TASK, picture)
    with pytest.raises(Refused):
        reserve(site_in(tmp_path, epsilon=1000.0), TASK, ONE)
    assert standing(site_in(tmp_path)).spent == math.inf


def test_a_rehearsal_spends_nothing(tmp_path: Path) -> None:
    site = site_in(tmp_path, epsilon=cost(1))
    with rehearsal():
        reserve(site, TASK, ONE)
        reserve(site, TASK, ONE)
    assert not (tmp_path / "ledger").exists()
    reserve(site, replace(TASK, run="rehearsal"), ONE)
    assert standing(site).spent == pytest.approx(cost(1)), "the name of a run buys nothing"


def test_a_commit_names_its_reservations_and_costs_nothing_more(tmp_path: Path) -> None:
    site = site_in(tmp_path, epsilon=100.0)
    reserve(site, TASK, ONE)  # a training that died
    began = ledger_of(site).count()
    reserve(site, TASK, ONE)
    reserve(site, TASK, replace(ONE, steps=5))  # say, a head that is refit
    spent = standing(site).spent
    leave(reply_to(TASK), TASK, site, began)
    line = ledger_of(site).entries()[-1]
    assert (line.kind, line.reservations, line.steps) == ("commit", (2, 3), 25)
    assert (line.left, line.examples) == (("update",), 36)
    assert line.bytes > 1000
    assert standing(site).spent == spent == line.after


def test_an_update_for_which_nothing_was_reserved_does_not_leave(tmp_path: Path) -> None:
    for site in (site_in(tmp_path), site_in(tmp_path, epsilon=100.0)):
        with pytest.raises(Refused) as caught:
            leave(reply_to(TASK), TASK, site, 0)
        assert caught.value.code is Code.BUDGET
    reserve(site, replace(TASK, round=2), ONE)
    with pytest.raises(Refused):
        leave(reply_to(TASK), TASK, site, 0)
    reserve(site, TASK, ONE)
    with pytest.raises(Refused):
        leave(reply_to(TASK), TASK, site, ledger_of(site).count())


def test_loss_and_rates_do_not_leave_beside_an_update_with_a_guarantee(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    reserve(site, TASK, ONE)
    left = leave(replace(reply_to(TASK), loss=0.3, metrics={"validation_auroc": 0.7}), TASK, site, 0)
    assert (left.loss, left.metrics) == (None, {})


@pytest.mark.parametrize("stage", ["describe", "mae", "detect", "test"])
def test_each_answer_has_its_line_before_it_leaves(
    site: Site, task_for: Callable[..., Task], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(Outbox, "keep", lambda self, reply: seen.append(kinds(site)))
    reply = answer(task_for(stage), site)
    assert reply.code is None
    expected = {"describe": "description", "mae": "unprotected", "detect": "unprotected", "test": "evaluation"}[stage]
    assert seen == [[expected]]
    (line,) = ledger_of(site).entries()
    assert line.bytes >= len(reply.update) + len(json.dumps(reply.metrics))
    assert (line.run, line.plan, line.examples) == ("run", task_for(stage).plan_digest, reply.examples)
    held = {"describe": {"description"}, "test": {"evaluation"}}
    assert set(line.left) == held.get(stage, {"update", "loss", *reply.metrics})


def test_an_answer_that_leaves_again_has_a_line_again_and_is_no_new_release(
    site: Site, task_for: Callable[..., Task]
) -> None:
    answer(task_for("mae"), site)
    answer(task_for("mae"), site)
    assert kinds(site) == ["unprotected", "again"]
    assert standing(site).account.unprotected == 1


def test_an_answer_kept_before_there_was_a_ledger_is_a_release(
    site: Site, task_for: Callable[..., Task], tmp_path: Path
) -> None:
    answer(task_for("mae"), site)
    for path in (site.private / "ledger" / "ledger.sqlite", site.private / "ledger.head"):
        path.unlink()
    answer(task_for("mae"), site)
    assert kinds(site) == ["unprotected"]
    for path in (site.private / "ledger" / "ledger.sqlite", site.private / "ledger.head"):
        path.unlink()
    kept = answer(task_for("mae"), replace(site, policy=replace(site.policy, epsilon=8.0)))
    assert (kept.code, kept.update) == (Code.POLICY, b"")


def test_a_ledger_that_was_altered_or_cannot_be_written_lets_nothing_leave(
    site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer(task_for("describe"), site)
    (site.private / "ledger.head").unlink()
    reply = answer(task_for("mae"), site)
    assert (reply.code, reply.update, reply.loss) == (Code.FAILED, b"", None)
    assert "ledger.head: is not there" in caplog.text
    with pytest.raises(LedgerError):
        reserve(site, task_for("mae"), ONE)


def test_a_line_says_to_whom(site: Site, task_for: Callable[..., Task], tmp_path: Path) -> None:
    member = joined(site.private, Authority(tmp_path / "authority").pem, 443)
    answer(task_for("describe"), site)
    (line,) = ledger_of(site).entries()
    assert line.recipient == f"northlight ({member.fingerprint})"


def test_of_tasks_at_once_only_those_pass_that_the_budget_carries(tmp_path: Path) -> None:
    """Processes, not threads: each task of a hospital is one."""
    passed = run("at once", tmp_path, ONE, cost(8) + 1e-9)
    assert len(passed) == 4
    assert sum(passed) == 8
    assert standing(site_in(tmp_path)).spent == pytest.approx(cost(8))


def test_a_history_of_a_thousand_steps_cut_by_kills_is_complete_and_costs_what_it_should(tmp_path: Path) -> None:
    """Trainings that reserve and commit are killed at random times until 1,000 steps are reserved; what had begun is all there."""
    mechanism = Mechanism("patient", 1.1, 0.04, 20)
    kills = run("kills", tmp_path, mechanism, 50)
    lines = ledger_of(site_in(tmp_path / "private")).entries()
    told_of = Counter((tmp_path / "started").read_text().splitlines())
    found = Counter(f"{line.kind} {line.round}" for line in lines)
    assert not told_of - found, "nothing that had begun is missing"
    assert sum((found - told_of).values()) <= kills, "at most one line for each kill that was not told of any more"
    steps = sum(line.steps or 0 for line in lines if line.kind == "reserve")
    spent = Account.of(lines).epsilon("patient", DELTA)
    assert steps >= 1000
    assert spent == pytest.approx(renyi_epsilon([(1.1, 0.04, steps)], DELTA), rel=5e-3)
    assert loss_epsilon([(1.1, 0.04, steps)], DELTA) - 4e-5 * steps <= spent
    print(f"{kills} kills, {len(lines)} lines, {steps} steps, epsilon {spent:.4f}")


def test_epsilon_is_told_as_no_less_and_what_is_left_as_no_more() -> None:
    assert (told(1.231), told(1.23), told(0.0), told(math.inf)) == ("1.24", "1.23", "0.00", "no limit")
    assert (told_left(1.239), told_left(1.23)) == ("1.23", "1.23")


def test_where_the_policy_asks_for_patients_a_plan_for_patients_passes_up_to_the_budget(
    site: Site, plan: Plan, task_for: Callable[..., Task]
) -> None:
    """The whole way of a training under a guarantee: reserved, trained, committed; and refused, before it begins, once it is too much."""
    private = promised(plan)
    strict = replace(site, policy=Policy(plans="any", epsilon=1e-6))
    reply = answer(task_for("detect", plan=private), strict)
    assert (reply.code, reply.update) == (Code.BUDGET, b"")
