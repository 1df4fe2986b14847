"""The hospital decides: what its policy does not allow is refused with a code, and why stays in the hospital."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.app import answer
from client.approval import Approvals
from client.cli import main
from client.dataset import Cache
from client.policy import objection
from client.rehearsal import rehearse
from client.site import Policy, Site
from client.work import train
from cxrbase_model.engine import Runtime
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.settings import SettingsError, read
from tests.client.ledgering import promised

TaskFor = Callable[..., Task]


def allowing(site: Site, **policy: object) -> Site:
    return replace(site, policy=read(Policy, {"plans": "any"} | policy))


def at(hour: int, minute: int = 0) -> time.struct_time:
    return time.struct_time((2026, 3, 4, hour, minute, 0, 2, 63, 0))


@pytest.mark.parametrize(
    ("policy", "stage", "code"),
    [
        ({}, "mae", None),
        ({"stages": ["finetune"]}, "mae", Code.POLICY),
        ({"stages": ["pretrain"]}, "mae", None),
        ({"stages": ["pretrain"]}, "test", Code.POLICY),
        ({"local_epochs": 1.9}, "mae", Code.POLICY),
        ({"local_epochs": 2}, "mae", None),
        ({"local_epochs": 0.5}, "test", None),
        ({"parameters": 1000}, "mae", Code.POLICY),
        ({"parameters": 1000}, "test", Code.POLICY),
        ({"plans": "list"}, "mae", Code.POLICY),
        ({"plans": "list"}, "describe", Code.POLICY),
        ({"plans": "ask"}, "mae", Code.APPROVAL),
        ({"plans": "ask"}, "describe", Code.APPROVAL),
    ],
)
def test_a_task_outside_the_policy_is_refused(
    site: Site, task_for: TaskFor, policy: dict[str, object], stage: str, code: Code | None
) -> None:
    reply = answer(task_for(stage), allowing(site, **policy))
    assert reply.code is code
    if code is not None:
        assert (reply.update, reply.description, reply.evaluation, reply.examples) == (b"", None, None, 0)


def test_a_plan_on_the_list_runs(site: Site, task_for: TaskFor, plan: Plan) -> None:
    assert answer(task_for("mae"), allowing(site, plans="list", digests=["0" * 64, plan.digest])).code is None


def test_where_privacy_is_required_no_training_without_a_guarantee_runs(
    site: Site, task_for: TaskFor, plan: Plan
) -> None:
    strict = allowing(site, epsilon=8.0)
    for stage in ("mae", "detect"):
        assert answer(task_for(stage), strict).code is Code.POLICY
    assert objection(plan, "mae", strict) == "policy.epsilon allows 8, stage mae gives no guarantee"
    assert answer(task_for("test"), strict).code is Code.POLICY
    assert objection(plan, "test", strict).startswith("policy.evaluations does not allow stage test")
    assert answer(task_for("test"), allowing(site, epsilon=8.0, evaluations="allow")).code is None
    assert answer(task_for("describe"), strict).code is None


def test_a_guarantee_for_pictures_is_not_enough_where_one_for_patients_is_asked_for(site: Site, plan: Plan) -> None:
    pictures = promised(plan, unit="picture")
    assert "policy.unit is patient" in objection(pictures, "mae", allowing(site, epsilon=8.0))
    assert objection(pictures, "mae", allowing(site, epsilon=8.0, unit="picture")) == ""
    for unit in ("patient", "picture"):
        assert objection(promised(plan), "mae", allowing(site, epsilon=8.0, unit=unit)) == ""


@pytest.mark.parametrize(
    ("hours", "hour", "minute", "is_open"),
    [
        ([], 12, 0, True),
        (["19:00-07:00"], 18, 59, False),
        (["19:00-07:00"], 19, 0, True),
        (["19:00-07:00"], 0, 0, True),
        (["19:00-07:00"], 6, 59, True),
        (["19:00-07:00"], 7, 0, False),
        (["09:00-12:30", "14:00-16:00"], 12, 29, True),
        (["09:00-12:30", "14:00-16:00"], 13, 0, False),
        (["00:00-24:00"], 23, 59, True),
    ],
)
def test_tasks_begin_within_the_hours(
    site: Site, plan: Plan, hours: list[str], hour: int, minute: int, is_open: bool
) -> None:
    found = objection(plan, "mae", allowing(site, hours=hours), at(hour, minute))
    assert found == ("" if is_open else f"policy.hours does not allow {hour:02}:{minute:02}")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"hours": ["7-19"]}, r'policy\.hours: expected spans such as "19:00-07:00", found \'7-19\''),
        ({"hours": ["25:00-07:00"]}, r"policy\.hours: .*25:00-07:00"),
        ({"stages": ["inference"]}, r"policy\.stages: expected of pretrain, finetune, evaluate, found 'inference'"),
        ({"plans": "all"}, r"plans: .*ask"),
        ({"epochs": 3}, r"epochs: unknown key"),
    ],
)
def test_a_policy_that_is_not_understood_is_an_error(policy: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(Policy, policy)


def test_a_plan_that_was_asked_for_runs_once_it_is_approved(site: Site, task_for: TaskFor, plan: Plan) -> None:
    asking, approvals = allowing(site, plans="ask"), Approvals(site.private)
    assert answer(task_for("mae"), asking).code is Code.APPROVAL
    assert [each.digest for each in approvals.plans("asked")] == [plan.digest]
    approvals.approve(plan)
    assert approvals.plans("asked") == []
    assert answer(task_for("mae"), asking).code is None
    changed = replace(plan, seed=4)
    assert answer(task_for("mae", plan=changed), asking).code is Code.APPROVAL, "another plan, by one number"
    approvals.revoke(plan)
    assert answer(task_for("mae", 2), asking).code is Code.APPROVAL


def test_a_server_cannot_fill_the_disk_with_plans(site: Site, plan: Plan) -> None:
    approvals = Approvals(site.private)
    for seed in range(60):
        approvals.ask(replace(plan, seed=seed))
    assert len(approvals.plans("asked")) == 50
    assert {each.seed for each in approvals.plans("asked")} == set(range(10, 60))


def test_why_is_in_the_hospitals_log_alone(site: Site, task_for: TaskFor, caplog: pytest.LogCaptureFixture) -> None:
    reply = answer(task_for("mae"), allowing(site, local_epochs=1))
    assert "policy.local_epochs allows 1, stage mae wants 2" in caplog.text
    assert "epochs" not in str(vars(reply))


@pytest.fixture
def plan_file(site: Site, plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(plan_to_text(plan), encoding="utf-8")
    return path


def site_file(site: Site) -> str:
    return str(site.private.parent / "SITE.yaml")


def test_the_command_shows_approves_and_revokes(
    site: Site, plan: Plan, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    approvals = Approvals(site.private)
    approvals.ask(plan)
    assert main(["plans", site_file(site)]) == 0
    assert "waits for approval" in " ".join(capsys.readouterr().out.split())
    assert main(["plans", site_file(site), "--approve", plan.digest[:8]]) == 0
    assert approvals.approved(plan)
    assert main(["plans", site_file(site), "--revoke", str(plan_file)]) == 0
    assert not approvals.approved(plan)
    assert main(["plans", site_file(site), "--approve", plan.digest[:7]]) == 2
    assert "PLAN: expected a plan file, or 8 or more characters of one of none" in capsys.readouterr().err
    assert not approvals.approved(plan)


def test_a_rehearsal_shows_what_training_would_release_and_leaves_no_trace(
    site: Site, plan: Plan, task_for: TaskFor
) -> None:
    before = {path: path.read_bytes() for path in site.private.rglob("*") if path.is_file()}
    rehearsed = {done.stage.name: done for done in rehearse(plan, site)}
    after = {path: path.read_bytes() for path in site.private.rglob("*") if path.is_file()}
    assert after == before
    assert list(rehearsed) == ["mae", "detect", "test"]
    assert all(done.code is None and done.reply is not None and done.memory for done in rehearsed.values())
    real = train(task_for("mae"), site, Cache.open(site.cache_folder), Runtime(torch.device("cpu")))
    reply = rehearsed["mae"].reply
    assert reply is not None
    assert (reply.update, reply.examples, reply.loss) == (real.update, real.examples, real.loss)


def test_a_rehearsal_tells_what_the_policy_would_refuse(
    site: Site, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(site_file(site))
    path.write_text(path.read_text().replace("plans: any", "plans: any\n  stages: [finetune, evaluate]"))
    assert main(["rehearse", str(path), "--plan", str(plan_file)]) == 1
    told = capsys.readouterr().out
    assert "would be refused: policy.stages does not allow pretrain" in told
    assert "leaves: update" in told
    assert told.count("would be refused") == 1


def test_a_rehearsal_without_labels_tells_so(site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.work.labelled_share", lambda cache, rows, fraction, seed: rows[:0])
    (detect,) = (done for done in rehearse(plan, site) if done.stage.name == "detect")
    assert (detect.code, detect.reply) == (Code.NO_LABELS, None)


def test_the_only_plan_that_was_asked_for_is_rehearsed_without_naming_it(
    site: Site, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(site.private.parent / "SITE.yaml")
    assert main(["rehearse", file]) == 2
    assert "--plan: is required" in capsys.readouterr().err
    Approvals(site.private).ask(plan)
    assert main(["rehearse", file]) == 0
    assert f"rehearses {plan.name}" in capsys.readouterr().out
    assert main(["rehearse", file, "--plan", plan.digest[:8]]) == 0
