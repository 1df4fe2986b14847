"""The executor, a real process beside a real Runtime API: tasks of ClientApps run, those of AgentApps are refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType

from client.node.supernode import environment, python
from client.site import Site
from cxrbase_model.bundle import release_bundle
from cxrbase_model.messages import Code, Task, reply_from_message
from cxrbase_model.plan import Plan, PretrainStage
from tests.client.node.conftest import SECRET, WAIT, SuperNode, wait_for


@pytest.fixture
def executor(supernode: SuperNode, site: Site, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    supernode.config["site"] = str(site.private.parent / "SITE.yaml")
    (tmp_path / "secret").write_bytes(SECRET)
    command = [
        *python("client.node.executor"), "--private", str(site.private), "--address", supernode.address,
        "--secret", str(tmp_path / "secret"), "--parent", str(os.getpid()),
    ]  # fmt: skip
    with (tmp_path / "executor.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(site.private), stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def long_task(task_for: Callable[..., Task], plan: Plan) -> Task:
    """Training that is still under way when a test ends it."""
    stage = plan.stages[0]
    assert isinstance(stage, PretrainStage)
    return task_for("mae", plan=replace(plan, stages=(replace(stage, local_epochs=1000.0), *plan.stages[1:])))


@pytest.mark.usefixtures("executor")
def test_tasks_run_one_after_the_other(supernode: SuperNode, task_for: Callable[..., Task]) -> None:
    supernode.offer(task_for("mae"), release_bundle(), TaskType.AGENT_APP)
    message, _ = supernode.wait_for_answer()
    assert message.error.reason == "the hospital has no answer"
    supernode.offer(task_for("describe"), release_bundle())
    message, _ = supernode.wait_for_answer()
    assert reply_from_message(message).code is None
    supernode.offer(task_for("describe"), b"other code")
    message, _ = supernode.wait_for_answer()
    assert reply_from_message(message).code is Code.BUNDLE


def test_a_runner_that_was_killed_is_answered_for_at_once_and_the_next_task_runs(
    supernode: SuperNode, executor: subprocess.Popen[bytes], site: Site, task_for: Callable[..., Task], long_task: Task
) -> None:
    supernode.offer(long_task, release_bundle())
    os.kill(wait_for(lambda: training(executor.pid, site)), signal.SIGKILL)
    message, _ = supernode.wait_for_answer()
    assert message.error.reason == "the hospital has no answer"
    supernode.offer(task_for("describe"), release_bundle())
    message, _ = supernode.wait_for_answer()
    assert reply_from_message(message).code is None


def test_a_runner_ends_with_its_executor(
    supernode: SuperNode, executor: subprocess.Popen[bytes], site: Site, long_task: Task
) -> None:
    supernode.offer(long_task, release_bundle())
    runner = wait_for(lambda: training(executor.pid, site))
    executor.send_signal(signal.SIGTERM)
    assert executor.wait(WAIT) == 0
    assert not Path(f"/proc/{runner}").exists()


def test_a_runner_does_not_outlive_an_executor_that_was_killed(
    supernode: SuperNode, executor: subprocess.Popen[bytes], site: Site, long_task: Task
) -> None:
    supernode.offer(long_task, release_bundle())
    runner = wait_for(lambda: training(executor.pid, site))
    executor.kill()
    wait_for(lambda: not Path(f"/proc/{runner}").exists())


def training(executor: int, site: Site) -> int | None:
    """The runner that has the pictures open: one of the forks of a process that the executor has started."""
    for runner in (runner for between in children(executor) for runner in children(between)):
        with contextlib.suppress(OSError):
            if str(site.cache_folder) in Path(f"/proc/{runner}/maps").read_text(encoding="utf-8"):
                return runner
    return None


def children(parent: int) -> list[int]:
    """The processes that a process has started and not waited for."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
