"""The Flower ServerApp: reads its settings once, then hands everything to the round loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cxrbase_model.files import locked
from cxrbase_model.plan import Plan, read_plan
from server.board import Board
from server.exchange import Exchange, Stopped
from server.live import Live
from server.pieces import join_in_place, look_often
from server.rounds import Observer, RoundLoop, RunFailed
from server.stage_model import unmatched
from server.store import RunStore, StoreError

_LOOKS = 50  # tenths of a second

PATIENCE = 30.0  # seconds; a hospital's people approve a plan, make room on a disk or wait for the night


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives and how it is started; `expected`, `patience` and `noise_seed` as in `RoundLoop`."""

    folder: Path
    plan: Plan
    resume: bool = False
    expected: int | None = None
    patience: float = 0.0
    noise_seed: int | None = None


def serve(
    grid: Grid,
    settings: RunSettings,
    observers: Iterable[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run a plan to its end, or go on with one, over any Grid; RunFailed, StoreError or Stopped where that is not possible.

    However it ends, the run's status.json says so.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    look_often()
    join_in_place()
    with _alone(settings.folder):
        live = Live(settings.folder)
        try:
            _run(grid, settings, live, observers, should_stop)
        except Stopped:
            live.tell("stopped", "the same command goes on with the next round")
            raise
        except (RunFailed, StoreError) as error:
            live.tell("failed", str(error))
            raise
        live.tell("done")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run's lock; StoreError where another process keeps it for more than a look at it."""
    for _ in range(_LOOKS):
        with locked(folder / "run.lock") as alone:
            if alone:
                yield
                return
        time.sleep(0.1)
    raise StoreError(f"{folder}: another process runs these rounds")


def _run(
    grid: Grid, settings: RunSettings, live: Live, observers: Iterable[Observer], should_stop: Callable[[], bool]
) -> None:
    if problem := unmatched(settings.plan):
        raise RunFailed(problem)
    if settings.resume:
        store = RunStore.resume(settings.folder, settings.plan)
    else:
        store = RunStore.create(settings.folder, settings.plan)
    board = Board(settings.folder, purge_after_round=store.next_round - 1)
    try:
        exchange = Exchange(grid, should_stop, live.look)
        RoundLoop(
            exchange, store, live, expected=settings.expected, patience=settings.patience,
            observers=[board.write, *observers], noise_seed=settings.noise_seed,
        ).run()  # fmt: skip
    finally:
        board.close()


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of a deployed run: the run directory, which its starter has made, says everything else."""
    folder = Path(str(context.run_config["run-directory"]))
    expected = int(context.run_config["expected-hospitals"]) or None
    plan = read_plan(folder / "plan.yaml")
    settings = RunSettings(folder, plan, resume=True, expected=expected, patience=PATIENCE)
    with contextlib.suppress(Stopped):
        serve(grid, settings)
