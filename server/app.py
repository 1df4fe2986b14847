"""The Flower ServerApp: reads its settings once, then hands everything to the round loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cxrbase_model.plan import Plan, plan_from_text
from server.board import Board
from server.exchange import Exchange
from server.rounds import Observer, RoundLoop
from server.store import RunStore


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives and how it is started; `expected` hospitals are waited for before the first round."""

    folder: Path
    plan: Plan
    resume: bool = False
    expected: int | None = None


def serve(
    grid: Grid,
    settings: RunSettings,
    observers: Iterable[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run a plan to its end, or go on with one, over any Grid."""
    if settings.resume:
        store = RunStore.resume(settings.folder, settings.plan)
    else:
        store = RunStore.create(settings.folder, settings.plan)
    board = Board(settings.folder, purge_after_round=store.next_round - 1)
    try:
        exchange = Exchange(grid, should_stop)
        RoundLoop(exchange, store, expected=settings.expected, observers=[board.write, *observers]).run()
    finally:
        board.close()


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of a deployed run; its configuration carries the run directory and the whole plan."""
    folder = Path(str(context.run_config["run-directory"]))
    plan = plan_from_text(str(context.run_config["plan"]))
    expected = int(context.run_config["expected-hospitals"]) or None
    serve(grid, RunSettings(folder, plan, resume=(folder / "run.json").exists(), expected=expected))
