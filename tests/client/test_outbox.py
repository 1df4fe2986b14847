"""A hospital that is asked again for the same task sends the same answer again and trains nothing twice."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.app import answer
from client.guard import Noise
from client.outbox import FOLDER, Outbox, forget_outbox
from client.site import Site
from cxrbase_model.codec import pack
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import Plan
from cxrbase_model.state import State


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of tasks that were worked on, in order."""
    from client import app

    done: list[str] = []

    def performed(task: Task, site: Site, noise: Noise) -> Reply:
        done.append(task.kind)
        return worked(task, site, noise)

    worked = app.perform
    monkeypatch.setattr(app, "perform", performed)
    return done


@pytest.mark.parametrize("stage", ["mae", "detect", "test"])
def test_asked_again_the_same_answer_leaves(
    site: Site, task_for: Callable[..., Task], trainings: list[str], stage: str
) -> None:
    first = answer(task_for(stage), site)
    assert first.code is None
    assert answer(task_for(stage), site) == first
    assert len(trainings) == 1


def test_whatever_differs_is_worked_on_anew(
    site: Site, plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State], trainings: list[str]
) -> None:
    changed = {name: tensor + 1 for name, tensor in state_for("mae").items()}
    tasks = [
        task_for("mae"), task_for("mae", run="another"), task_for("mae", 2), task_for("mae", round=5),
        task_for("mae", state=changed), task_for("mae", plan=replace(plan, seed=4)), task_for("detect"),
    ]  # fmt: skip
    for task in tasks:
        assert answer(task, site).code is None
    assert len(trainings) == len(tasks)
    answer(tasks[-1], replace(site, minimum_cell=7))
    answer(tasks[-1], replace(site, site="lindenhof"))
    assert len(trainings) == len(tasks) + 2


def test_another_cache_is_worked_on_anew(site: Site, task_for: Callable[..., Task], trainings: list[str]) -> None:
    answer(task_for("mae"), site)
    about = site.cache_folder / "cache.json"
    about.write_text(about.read_text() + "\n")
    answer(task_for("mae"), site)
    assert len(trainings) == 2


def test_only_the_last_answer_is_kept_and_only_for_the_owner(site: Site, task_for: Callable[..., Task]) -> None:
    for number in (1, 2, 3):
        answer(task_for("mae", number), site)
    (file,) = (site.private / FOLDER).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert Outbox(site, task_for("mae", 3)).find() is not None
    assert Outbox(site, task_for("mae", 2)).find() is None


def test_descriptions_and_codes_are_not_kept(site: Site, task_for: Callable[..., Task]) -> None:
    assert answer(task_for("describe"), site).code is None
    assert answer(replace(task_for("mae"), state=pack({})), site).code is Code.STATE_DIGEST
    assert not (site.private / FOLDER).exists()


def test_the_policy_of_today_decides_about_the_answer_of_yesterday(site: Site, task_for: Callable[..., Task]) -> None:
    answer(task_for("mae"), site)
    strict = replace(site, policy=replace(site.policy, stages=("evaluate",)))
    assert answer(task_for("mae"), strict).code is Code.POLICY


@pytest.mark.parametrize("damage", [b"", b"{}\n{}\n", b"\xff\n\xff\n", None])
def test_a_damaged_copy_costs_the_copy_and_not_the_answer(
    site: Site, task_for: Callable[..., Task], trainings: list[str], damage: bytes | None
) -> None:
    first = answer(task_for("mae"), site)
    (file,) = (site.private / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert replace(answer(task_for("mae"), site), seconds=first.seconds) == first
    assert len(trainings) == 2


def test_a_full_disk_costs_the_copy_and_not_the_answer(
    site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.outbox.write_private", full)
    assert answer(task_for("mae"), site).code is None


def test_a_copy_can_be_forgotten(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "last").write_bytes(b"x")
    forget_outbox(tmp_path)
    forget_outbox(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_half_a_copy_of_a_process_that_died_is_removed(site: Site, task_for: Callable[..., Task]) -> None:
    answer(task_for("mae"), site)
    half = site.private / FOLDER / ".last.1.tmp"
    half.write_bytes(b"half")
    os.utime(half, (time.time() - 86_400,) * 2)
    answer(task_for("mae", 2), site)
    assert not half.exists()
