"""A run is served by one process at a time, and its status says how it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cxrbase_model.messages import Code
from server import app
from server.app import RunSettings, serve
from server.exchange import Stopped
from server.live import Requests, read_status
from server.rounds import RunFailed
from server.store import RunStore, StoreError
from sim.grid import LocalGrid
from tests.server.hospitals import hospital, short_plan


def grid() -> LocalGrid:
    return LocalGrid({1: hospital("a", 1.0, 10), 2: hospital("b", 1.0, 10)})


def ended(folder: Path) -> tuple[str, str]:
    status = read_status(folder)
    assert status is not None
    return status["state"], status["detail"]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs the rounds of the same folder."""
    code = (
        "import sys; from pathlib import Path; from cxrbase_model.files import locked\n"
        "with locked(Path(sys.argv[1])) as alone: print(alone, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


def test_two_processes_do_not_run_the_same_rounds(
    tmp_path: Path, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LOOKS", 2)
    settings = RunSettings(tmp_path, short_plan())
    with pytest.raises(StoreError, match="another process runs these rounds"):
        serve(grid(), settings)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"], "nothing was touched, its status least of all"
    other.kill()
    other.wait()
    serve(grid(), settings)
    assert ended(tmp_path) == ("done", "")


def test_a_run_that_is_done_says_so(tmp_path: Path) -> None:
    rounds: list[int] = []
    serve(grid(), RunSettings(tmp_path, short_plan()), [lambda record: rounds.append(record["round"])])
    assert (ended(tmp_path), rounds) == (("done", ""), [0, 1, 2, 3])
    assert list((tmp_path / "tensorboard" / "_global").iterdir())


def test_a_run_that_is_stopped_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    requests, settings = Requests(tmp_path), RunSettings(tmp_path, short_plan())
    with pytest.raises(Stopped):
        serve(grid(), settings, [lambda record: requests.ask("stop") if record["round"] == 1 else None])
    assert ended(tmp_path) == ("stopped", "the same command goes on with the next round")
    requests.withdraw("stop")
    serve(grid(), replace(settings, resume=True))
    assert ended(tmp_path) == ("done", "")
    assert [record["round"] for record in RunStore(tmp_path, short_plan()).records()] == [0, 1, 2, 3]


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    broken = LocalGrid(
        {
            1: hospital("a", 1.0, 10),
            2: hospital("b", 1.0, 10, lambda t, r: replace(r, code=Code.OUT_OF_MEMORY, update=b"")),
        }
    )
    with pytest.raises(RunFailed):
        serve(broken, RunSettings(tmp_path, short_plan()))
    state, detail = ended(tmp_path)
    assert state == "failed"
    assert "b: OUT_OF_MEMORY" in detail


def test_a_run_that_cannot_go_on_with_its_folder_says_why(tmp_path: Path) -> None:
    RunStore.create(tmp_path, short_plan(quorum=1))
    with pytest.raises(StoreError):
        serve(grid(), RunSettings(tmp_path, short_plan(), resume=True))
    state, detail = ended(tmp_path)
    assert state == "failed"
    assert "was started with plan" in detail
