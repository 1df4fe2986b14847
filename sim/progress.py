"""What a run shows: in a terminal a bar for each preparation step and stage, elsewhere a line for each step and round."""

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
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


class StepProgress:
    """A bar for each step that reports (what, done, total)."""

    def __init__(self, console: Console) -> None:
        self._console, self._progress = console, _bars(console)
        self._tasks: dict[str, TaskID] = {}

    def update(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a step are done."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
        self._progress.update(self._tasks[what], completed=done, total=total)
        if done == total and not self._console.is_terminal:
            self._console.print(f"{what}: {done} of {total}")

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
        self._stages = {item.stage.name: item for item in timeline(plan)}
        self._tasks: dict[str, TaskID] = {}

    def update(self, record: dict[str, Any]) -> None:
        """Show one committed round, and which stage comes next."""
        if record["kind"] == "describe":
            self._tell_hospitals(record)
            self._show(next(iter(self._stages)))
            return
        name, done, total = record["stage"], record["stage_round"], record["stage_rounds"]
        self._progress.update(self._show(name), completed=done, note=_note(record))
        if not self._console.is_terminal:
            seconds = f"{record['seconds']:.1f} s"
            self._console.print("  ".join(filter(None, [f"{name} {done}/{total}", seconds, _note(record)])))
        for entry in record["rejected"]:
            self._progress.console.print(f"  round {record['round']}: {entry['site']} left out, {entry['code']}")
        names = list(self._stages)
        if done == total and name != names[-1]:
            self._show(names[names.index(name) + 1])

    def _show(self, name: str) -> TaskID:
        """The bar of a stage, made where there is none yet."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=self._stages[name].stage_rounds, note="")
        return self._tasks[name]

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
        parts.append(f"AUROC {record['metrics']['validation_auroc']:.3f}")
    if "validation_loss" in record["metrics"]:
        parts.append(f"held out {record['metrics']['validation_loss']:.3f}")
    return ", ".join(parts)
