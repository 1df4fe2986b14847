"""What a run shows in the terminal: one bar for each preparation step, then one for the rounds."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cxrbase_model.plan import Plan, timeline


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


class StepProgress:
    """A bar for each step that reports (what, done, total)."""

    def __init__(self, console: Console) -> None:
        self._progress = _bars(console)
        self._tasks: dict[str, TaskID] = {}

    def update(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a step are done."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
        self._progress.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class RoundProgress:
    """A bar for each stage; committed rounds come in through `update`."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._progress = _bars(console)
        self._console = console
        self._totals: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        for item in timeline(plan):
            self._totals[item.stage.name] = item.stage_rounds

    def update(self, record: dict[str, Any]) -> None:
        """Show one committed round."""
        name = record["stage"]
        if record["kind"] == "describe":
            self._tell_hospitals(record)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{record['kind']} {name}", total=self._totals[name], note="")
        self._progress.update(self._tasks[name], completed=record["stage_round"], note=_note(record))
        for entry in record["rejected"]:
            self._progress.console.print(f"  round {record['round']}: {entry['site']} left out, {entry['code']}")

    def _tell_hospitals(self, record: dict[str, Any]) -> None:
        for entry in record["hospitals"]:
            pictures = entry.get("description", {}).get("pictures", {})
            counts = ", ".join(f"{count} {split}" for split, count in pictures.items())
            self._progress.console.print(f"  {entry['site']}: {counts or entry['code']}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _note(record: dict[str, Any]) -> str:
    parts = [f"loss {record['loss']:.3f}"] if record["loss"] is not None else []
    if "validation_auroc" in record["metrics"]:
        parts.append(f"AUROC before {record['metrics']['validation_auroc']:.3f}")
    if "validation_loss" in record["metrics"]:
        parts.append(f"held-out loss before {record['metrics']['validation_loss']:.3f}")
    return ", ".join(parts)
