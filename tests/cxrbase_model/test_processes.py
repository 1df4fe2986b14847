"""Child processes: their lines are kept privately, they end when they are told to and when their parent is gone, and tries are spaced."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxrbase_model import processes
from cxrbase_model.processes import Backoff, Program

WAIT = 30.0  # seconds; reached only where something is wrong

Run = Callable[..., Program]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts Python code as a program; ends what is left."""
    started: list[Program] = []

    def begin(code: str, **settings: Any) -> Program:
        program = Program([sys.executable, "-u", "-c", code], tmp_path / "program.log", {"A": "b"}, **settings)
        started.append(program)
        return program

    yield begin
    for program in started:
        program.end(0)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_line_is_logged_and_heard_and_the_last_ones_are_at_hand(run: Run, tmp_path: Path) -> None:
    heard: list[str] = []
    program = run(
        "import sys; [print('line', n, file=sys.stderr if n % 2 else sys.stdout, flush=True) for n in range(30)]; sys.exit(3)",
        heard=heard.append,
    )
    wait_for(lambda: program.status() is not None and len(heard) == 30)
    assert program.status() == 3
    program.end(1)
    assert program.last_lines == heard[-20:] == [f"line {number}" for number in range(10, 30)]
    assert [line.split(maxsplit=2)[2] for line in (tmp_path / "program.log").read_text().splitlines()] == heard


def test_what_is_no_text_is_logged_too(run: Run, tmp_path: Path) -> None:
    program = run(r"import sys; sys.stdout.buffer.write(b'\xff\xfe caf\xc3\xa9\nno end of line')")
    wait_for(lambda: len(program.last_lines) == 2)
    assert program.last_lines == ["�� café", "no end of line"]


def test_the_log_is_its_owners_alone_and_stays_so_when_it_rotates(run: Run, tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        program = run("[print('x' * 50) for _ in range(100)]", log_bytes=1000, log_files=2)
        wait_for(lambda: program.status() is not None)
        program.end(1)
    finally:
        os.umask(before)
    logs = sorted(tmp_path.glob("program.log*"))
    assert [path.name for path in logs] == ["program.log", "program.log.1", "program.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o600}
    assert all(path.stat().st_size <= 1000 for path in logs)


def test_a_log_that_cannot_be_written_costs_lines_and_not_the_program(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.log").mkdir()
    program = run("[print(n) for n in range(1000)]; print('through')")
    wait_for(lambda: program.status() is not None and program.last_lines[-1:] == ["through"])
    assert program.status() == 0
    assert capfd.readouterr() == ("", "")


def test_a_program_sees_the_environment_it_is_given_and_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the parent")
    program = run("import os, sys; print(os.environ.get('A'), os.environ.get('SECRET'), sys.stdin.read() == '')")
    wait_for(lambda: program.last_lines)
    assert program.last_lines == ["b None True"]


def test_a_program_is_asked_to_end_and_may_end_by_itself(run: Run) -> None:
    program = run(
        "import signal, sys\nsignal.signal(15, lambda *_: (print('goodbye'), sys.exit(5)))\nprint('ready')\nsignal.pause()"
    )
    wait_for(lambda: program.last_lines == ["ready"])
    program.end(WAIT)
    assert (program.status(), program.last_lines) == (5, ["ready", "goodbye"])


def test_a_program_that_does_not_listen_is_made_to_end(run: Run) -> None:
    program = run("import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('ready')\nwhile True: signal.pause()")
    wait_for(lambda: program.last_lines == ["ready"])
    program.end(0.1)
    assert program.status() == -signal.SIGKILL


@pytest.mark.parametrize("ending", ["signal.pause()", "sys.exit(1)"])
def test_what_a_program_has_started_ends_with_it(run: Run, ending: str) -> None:
    child = "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"
    program = run(
        f"import signal, subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)\n{ending}"
    )
    wait_for(lambda: program.last_lines)
    pid = int(program.last_lines[0])
    assert runs(pid)
    program.end(0.1)
    wait_for(lambda: not runs(pid))


def test_ending_twice_is_no_error(run: Run) -> None:
    program = run("pass")
    wait_for(lambda: program.status() is not None)
    program.end(WAIT)
    program.end(WAIT)
    assert program.status() == 0


PARENT = """
import subprocess, sys, time
child = "from cxrbase_model.processes import end_with_parent; import time; end_with_parent(); print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_after_its_parent_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert runs(child)
            parent.kill()
            parent.wait()
            wait_for(lambda: not runs(child))
        finally:
            if runs(child):
                os.kill(child, signal.SIGKILL)


def test_a_process_whose_parent_was_gone_before_it_looked_ends_too() -> None:
    code = "from cxrbase_model.processes import end_with_parent; import time; end_with_parent(1 << 30); time.sleep(600)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=WAIT, check=False)
    assert ended.returncode == -signal.SIGTERM


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=0.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr(processes, "time", made)
    return made


def pauses(backoff: Backoff, count: int) -> list[float]:
    found = []
    for _ in range(count):
        backoff.begin()
        found.append(backoff.pause())
    return found


def test_pauses_double_up_to_the_longest_with_a_little_chance(clock: SimpleNamespace) -> None:
    for _ in range(20):
        found = pauses(Backoff(first=1, longest=10), 7)
        for pause, least in zip(found, (1, 2, 4, 8, 10, 10, 10), strict=True):
            assert least <= pause <= 1.25 * least
    assert len({pauses(Backoff(), 1)[0] for _ in range(20)}) > 1, "hospitals do not come back all at once"


def test_pauses_begin_anew_after_a_try_that_went_well_for_long_enough(clock: SimpleNamespace) -> None:
    backoff = Backoff(first=1, longest=100, stable=60)
    pauses(backoff, 5)
    backoff.begin()
    clock.now += 59
    assert backoff.pause() >= 32
    backoff.begin()
    clock.now += 60
    assert backoff.pause() <= 1.25
    assert 2 <= pauses(backoff, 1)[0] <= 2.5


def test_pauses_begin_anew_after_a_try_that_got_something_done(clock: SimpleNamespace) -> None:
    backoff = Backoff(first=1, longest=100)
    pauses(backoff, 5)
    backoff.succeed()
    assert backoff.pause() <= 1.25
    assert 2 <= pauses(backoff, 1)[0] <= 2.5


def test_no_thread_is_left_after_a_program_has_ended(run: Run) -> None:
    before = threading.active_count()
    program = run("print('here')")
    program.end(WAIT)
    wait_for(lambda: threading.active_count() == before)
