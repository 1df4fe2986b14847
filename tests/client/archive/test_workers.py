"""No task can stop the others: it has a time and a memory limit, and a worker that dies is replaced."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.archive.reasons import Reason
from client.archive.workers import Failed, Pool

MIB = 1 << 20


def run(tasks: Sequence[object], *, count: int = 2, seconds: int = 20, memory: int = 256 * MIB) -> list[object]:
    with Pool(eval_task, count=count, seconds=seconds, memory=memory) as pool:
        results = list(pool.run(tasks))
    assert [task for task, _ in results] == tasks
    return [result for _, result in results]


def eval_task(task: Any) -> object:
    """Do what the task says."""
    match task:
        case ("sleep", seconds):
            time.sleep(seconds)
        case ("memory", size):
            return len(bytearray(size))
        case ("segfault",):
            ctypes.string_at(0)
        case ("signal", number):
            os.kill(os.getpid(), number)
        case ("exit",):
            os._exit(3)
        case ("raise",):
            raise MemoryError
        case ("hang in C",):
            while True:
                ctypes.CDLL(None).usleep(10_000_000)
    return task


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is pickled by name; the workers find this file on their path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "test_workers", sys.modules[__name__])
    monkeypatch.setattr(eval_task, "__module__", "test_workers")


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_tasks(count: int) -> None:
    tasks = [("sleep", 0.05) if index % 7 == 0 else index for index in range(60)]
    assert run(tasks, count=count) == tasks


def test_no_tasks_give_no_results() -> None:
    assert run([]) == []


def test_a_task_that_crashes_its_worker_fails_alone() -> None:
    assert run([1, ("segfault",), 2, ("exit",), 3]) == [1, Failed(Reason.CRASHED), 2, Failed(Reason.CRASHED), 3]


@pytest.mark.parametrize("task", [("sleep", 60), ("hang in C",)])
def test_a_task_that_hangs_is_ended(task: object) -> None:
    started = time.monotonic()
    assert run([1, task, 2], seconds=1) == [1, Failed(Reason.TIMEOUT), 2]
    assert time.monotonic() - started < 8


def test_a_task_that_wants_too_much_memory_fails_alone() -> None:
    assert run([("memory", 64 * MIB), ("memory", 512 * MIB), 3]) == [64 * MIB, Failed(Reason.OUT_OF_MEMORY), 3]


def test_a_worker_that_the_system_kills_was_out_of_memory() -> None:
    assert run([("signal", int(signal.SIGKILL)), 2]) == [Failed(Reason.OUT_OF_MEMORY), 2]


def test_workers_end_when_their_owner_does() -> None:
    with Pool(eval_task, count=2, seconds=20, memory=256 * MIB) as pool:
        processes = [worker._process for worker in pool._workers]
        next(iter(pool.run([1])))
    assert all(process.poll() is not None for process in processes)
