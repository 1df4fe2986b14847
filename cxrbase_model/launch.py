"""Processes of this machine that train as one, started, watched and ended by the one that wants them trained: torchrun without torchrun.

They find each other by a file and talk over the loopback interface, which no other machine reaches. Whoever starts them takes no part
in the training, so that it can end them whatever they are waiting for; and they end with it, even by kill -9.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cxrbase_model.meeting import meeting_file
from cxrbase_model.parallel import join
from cxrbase_model.processes import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")

_GRACE = 1.0  # seconds in which the others may say what happened to them, once one has failed


class WorkerLost(RuntimeError):
    """A process ended without a word, as one does that is killed; on a machine short of memory the kernel kills."""


def launch(
    work: Callable[[Job, torch.device], Result], job: Job, devices: Sequence[torch.device], threads: int
) -> Result:
    """Do `work(job, device)` in a process of its own for each device, all of one process group; gives what the first returned.

    `work` is a function of a module; job and result are sent by pickle. threads: of torch, in each process. Where one fails, all are
    ended and its error is raised, with its traceback as a note; WorkerLost where it was killed.
    """
    sent = pickle.dumps(
        job
    )  # plainly, since torch would pass tensors in shared memory, of which a container has little
    context = multiprocessing.get_context("spawn")
    with meeting_file() as meeting:
        place = _Place(os.getpid(), str(meeting), len(devices), threads)
        group = _Group()
        try:
            for rank, device in enumerate(devices):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(place, rank, device, theirs, work, sent), daemon=True)
                process.start()
                theirs.close()
                group.add(process, ours)
            return group.first_result()  # type: ignore[no-any-return]  # what `work` gave, by way of pickle
        finally:
            group.end()


@dataclass(frozen=True)
class _Place:
    """What all processes of a group are told."""

    parent: int
    meeting: str
    size: int
    threads: int


@dataclass(frozen=True)
class _Outcome:
    """What became of a process's work: pickled, the first one's result, or the error."""

    result: bytes = b""
    error: bytes = b""
    told: str = ""


class _Group:
    """The processes and what they have said."""

    def __init__(self) -> None:
        self._processes: list[SpawnProcess] = []
        self._lines: list[Connection] = []

    def add(self, process: SpawnProcess, line: Connection) -> None:
        self._processes.append(process)
        self._lines.append(line)

    def first_result(self) -> Any:
        """Wait for all; the first one's result, or what is the matter with the first that fails."""
        found: dict[int, _Outcome | None] = {}
        while len(found) < len(self._lines):
            for rank, outcome in self._hear(found, timeout=None):
                found[rank] = outcome
            if any(outcome is None or outcome.error for outcome in found.values()):
                self._fail(found)
        first = found[0]
        assert first is not None  # else it has failed
        return pickle.loads(first.result)

    def _hear(self, found: dict[int, _Outcome | None], timeout: float | None) -> list[tuple[int, _Outcome | None]]:
        """What those say that have not spoken yet; None of one that ended without."""
        silent = {line: rank for rank, line in enumerate(self._lines) if rank not in found}
        heard: list[tuple[int, _Outcome | None]] = []
        for line in wait(list(silent), timeout):
            assert isinstance(line, Connection)  # nothing else was waited for
            try:
                heard.append((silent[line], pickle.loads(line.recv_bytes())))
            except EOFError:
                heard.append((silent[line], None))
        return heard

    def _fail(self, found: dict[int, _Outcome | None]) -> None:
        """Raise the cause: a process that was lost breaks the others' lines, so it goes first; else the first that spoke."""
        until = time.monotonic() + _GRACE
        while len(found) < len(self._lines) and (left := until - time.monotonic()) > 0:
            found |= dict(self._hear(found, left))
        for rank, outcome in found.items():
            if outcome is None:
                self._processes[rank].join(_GRACE)
                raise WorkerLost(f"process {rank} of {len(found)} ended with status {self._processes[rank].exitcode}")
        failed = next(outcome for outcome in found.values() if outcome is not None and outcome.error)
        error: BaseException = pickle.loads(failed.error)
        error.add_note(failed.told)
        raise error

    def end(self) -> None:
        """End those that are still there."""
        for process in self._processes:
            process.kill()
        for process, line in zip(self._processes, self._lines, strict=True):
            process.join()
            process.close()
            line.close()


def _serve(
    place: _Place,
    rank: int,
    device: torch.device,
    line: Connection,
    work: Callable[[Any, torch.device], Any],
    sent: bytes,
) -> None:
    """Be one of the processes: do the work and tell what came of it, which comes before the others notice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the one that has started this
    end_with_parent(place.parent)
    try:
        _join(place, rank, device)
        result = work(pickle.loads(sent), device)
        outcome = _Outcome(result=pickle.dumps(result) if rank == 0 else b"")
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told
        outcome = _Outcome(error=_pickled(error), told=traceback.format_exc())
    line.send_bytes(pickle.dumps(outcome))
    if dist.is_initialized() and not outcome.error:  # with an error, others may wait in the middle of something
        dist.destroy_process_group()


def _join(place: _Place, rank: int, device: torch.device) -> None:
    torch.set_num_threads(place.threads)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    join(device, init_method=f"file://{place.meeting}", rank=rank, world_size=place.size)


def _pickled(error: BaseException) -> bytes:
    """The error, or its class's name and text where it cannot be sent."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:  # noqa: BLE001  # anything may go wrong in another's pickling
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return sent
