"""Processes that are started for a training end with it, whatever becomes of it.

The file is also a program: `test_launch.py FOLDER` starts two processes that wait for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cxrbase_model.launch import WorkerLost, launch
from cxrbase_model.parallel import World

ROOT = Path(__file__).parents[2]
TWO = [torch.device("cpu")] * 2


def work(job: tuple[str, str], device: torch.device) -> tuple[int, int, float]:
    """Add up ranks; or fail, die or wait for ever, in the second process alone."""
    what, folder = job
    world = World.current()
    if folder:
        (Path(folder) / f"{world.rank}.pid").write_text(str(os.getpid()))
    if world.rank == 1 and what == "memory":
        raise torch.OutOfMemoryError("no room")
    if world.rank == 1 and what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == 1 and what == "wait":
        time.sleep(600)
    total = torch.tensor(float(world.rank + 1))
    dist.all_reduce(total)
    return world.size, torch.get_num_threads(), float(total)


def test_the_first_ones_result_comes_back() -> None:
    assert launch(work, ("", ""), TWO, threads=1) == (2, 1, 3.0)


@pytest.mark.parametrize(("what", "error"), [("memory", torch.OutOfMemoryError), ("kill", WorkerLost)])
def test_what_happens_to_one_is_told_while_the_other_waits_for_it(
    what: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        launch(work, (what, str(tmp_path)), TWO, threads=1)
    assert what == "kill" or "Traceback" in raised.value.__notes__[0]
    assert what != "kill" or "ended with status -9" in str(raised.value)
    assert not alive(tmp_path)


def test_they_end_with_the_process_that_has_started_them(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=environment)
    wait_until(lambda: len(alive(tmp_path)) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(tmp_path))


def alive(folder: Path) -> list[int]:
    """The processes that have left their number there and still run."""
    numbers = [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


if __name__ == "__main__":
    launch(work, ("wait", sys.argv[1]), TWO, threads=1)
