"""Worker processes that a file may crash, hang or fill, without harm to the ingest.

Each worker does one task at a time under a limit of memory (RLIMIT_AS) and of time (an alarm that ends it even inside a C
decoder, and even if the ingest itself was killed). A worker that ends is replaced, and its task is tried once more in a fresh
one; then the task has failed with a reason. Results come back in the order of the tasks, whoever finishes first.

Workers are programs of their own, not started by multiprocessing, which would import the caller's program
(and with it torch) into each of them. Their output goes nowhere: what decoders print may quote a header.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Generic, TypeVar

from client.archive.reasons import Reason

Task = TypeVar("Task")
Result = TypeVar("Result")

_GRACE = 10.0  # seconds past its limit after which a worker is killed whose alarm did not end it
_START = 60.0  # seconds that a worker may take to start and import
_WINDOW = 16  # tasks per worker that may wait for an earlier, slower one to be given out
_TRIES = 2
_PROGRAM = "import sys; from client.archive.workers import work; work(int(sys.argv[1]))"
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    # glibc gives pictures back to the system after each step and asks for them again, which costs half of the time
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}


@dataclass(frozen=True)
class Failed:
    """A task that no worker could do: TIMEOUT, OUT_OF_MEMORY or CRASHED."""

    reason: Reason


@dataclass(eq=False)
class _Order(Generic[Task, Result]):
    """A task on its way."""

    task: Task
    tries: int = 0
    result: Result | Failed | None = None


class _Worker(Generic[Task, Result]):
    """A process, the pipe to it, and what it is busy with; may be started again."""

    def __init__(self, function: Callable[[Task], Result], seconds: int, memory: int) -> None:
        self._settings = (function, seconds, memory)
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        """Start a fresh process, which imports what it needs while the caller goes on."""
        self.order: _Order[Task, Result] | None = None
        self.deadline = float("inf")
        self._first = _START
        self.pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        self._send(self._settings)

    def give(self, order: _Order[Task, Result]) -> None:
        """Start a task."""
        order.tries += 1
        self.order = order
        self.deadline = time.monotonic() + self._seconds + _GRACE + self._first
        self._first = 0.0
        self._send(order.task)

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which shows when its answer is waited for
            self.pipe.send(message)

    def end(self) -> int:
        """End the process; gives the exit status it ended with by itself, or -SIGKILL."""
        self.pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.2)  # a pipe at its end may be seen before the process is
        self._process.kill()
        return self._process.wait()


class Pool(Generic[Task, Result]):
    """Processes that apply `function(task)`; function, tasks and results are pickled. Use as a context manager.

    count: processes. seconds: longest time for a task. memory: bytes a task may take beyond what a fresh worker has.
    """

    def __init__(self, function: Callable[[Task], Result], *, count: int, seconds: int, memory: int) -> None:
        self._settings = (function, seconds, memory)
        self._count = count
        self._workers: list[_Worker[Task, Result]] = []

    def __enter__(self) -> Pool[Task, Result]:
        self._workers = [_Worker(*self._settings) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result | Failed]]:
        """Every task with its result, in order."""
        waiting = iter(tasks)
        ahead: deque[_Order[Task, Result]] = deque()  # given out or done, in order
        retry: deque[_Order[Task, Result]] = deque()
        while True:
            for worker in self._workers:
                if worker.order is None and (order := self._next(waiting, ahead, retry)):
                    worker.give(order)
            if not ahead:
                return
            if ahead[0].result is None:
                self._collect(retry)
            while ahead and (result := ahead[0].result) is not None:
                yield ahead.popleft().task, result

    def _next(
        self, waiting: Iterator[Task], ahead: deque[_Order[Task, Result]], retry: deque[_Order[Task, Result]]
    ) -> _Order[Task, Result] | None:
        if retry:
            return retry.popleft()
        if len(ahead) >= _WINDOW * self._count:
            return None
        for task in waiting:
            ahead.append(_Order(task))
            return ahead[-1]
        return None

    def _collect(self, retry: deque[_Order[Task, Result]]) -> None:
        """Wait until some worker has a result, has ended, or has run out of time."""
        busy = {worker.pipe: worker for worker in self._workers if worker.order is not None}
        left = min(worker.deadline for worker in busy.values()) - time.monotonic()
        ready = wait(list(busy), timeout=max(0.0, left))
        for worker in list(busy.values()):
            if worker.pipe in ready:
                self._take(worker, retry)
            elif time.monotonic() > worker.deadline:
                self._fail(worker, Reason.TIMEOUT, retry)

    def _take(self, worker: _Worker[Task, Result], retry: deque[_Order[Task, Result]]) -> None:
        try:
            result = worker.pipe.recv()
        except (EOFError, OSError):
            self._fail(worker, None, retry)
            return
        if isinstance(result, Failed):
            self._fail(worker, result.reason, retry)
            return
        if worker.order is not None:
            worker.order.result = result
        worker.order, worker.deadline = None, float("inf")

    def _fail(self, worker: _Worker[Task, Result], reason: Reason | None, retry: deque[_Order[Task, Result]]) -> None:
        order = worker.order
        status = worker.end()
        worker.start()
        if order is None:
            return
        reason = reason or {-signal.SIGALRM: Reason.TIMEOUT, -signal.SIGKILL: Reason.OUT_OF_MEMORY}.get(
            status, Reason.CRASHED
        )
        if order.tries < _TRIES and reason != Reason.TIMEOUT:
            retry.append(order)
        else:
            order.result = Failed(reason)


def work(handle: int) -> None:
    """What a worker does until the pipe with this file descriptor closes."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        _work(Connection(handle))


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the ingest, which closes the pipe
    function, seconds, memory = pipe.recv()
    _limit_memory(memory)
    while True:
        task = pipe.recv()
        signal.alarm(seconds)
        try:
            result = function(task)
        except MemoryError:
            result = Failed(Reason.OUT_OF_MEMORY)
        signal.alarm(0)
        pipe.send(result)


def _limit_memory(extra: int) -> None:
    """Let the process take `extra` bytes of address space beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
