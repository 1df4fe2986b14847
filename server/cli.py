"""cxrbase-server: what a consortium's operator does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cxrbase_model.plan import read_plan, timeline
from cxrbase_model.settings import SettingsError
from server.finish import finish
from server.report import summary_text
from server.store import RunStore, StoreError

EXIT_OK, EXIT_USAGE = 0, 2

console = Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 2 wrong usage, plan or run directory."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (SettingsError, StoreError) as error:
        print(f"cxrbase-server: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxrbase-server", description="The consortium's side: check a training plan, look at a run, report on it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = commands.add_parser("plan", help="check a plan and show its rounds and digest")
    plan.add_argument("plan", type=Path, metavar="PLAN.yaml", help="for example configs/plans/demo.yaml")
    plan.set_defaults(run=_plan)
    status = commands.add_parser("status", help="how far a run is")
    status.add_argument("folder", type=Path, metavar="RUN", help="a run directory")
    status.set_defaults(run=_status)
    report = commands.add_parser("report", help="export the models of a run and write its report anew")
    report.add_argument("folder", type=Path, metavar="RUN", help="a run directory")
    report.set_defaults(run=_report)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.plan)
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "kind", "rounds", "starts from"):
        table.add_column(heading)
    for stage in plan.stages:
        rounds = [item for item in timeline(plan) if item.stage is stage]
        table.add_row(stage.name, stage.kind, f"{rounds[0].number}-{rounds[-1].number}", getattr(stage, "init", ""))
    console.print(f"{plan.name}: {len(timeline(plan))} rounds, {', '.join(plan.data.findings)}")
    console.print(table)
    console.print(f"digest {plan.digest}")
    return EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    store = _store(arguments.folder)
    records = store.records()
    total = len(timeline(store.plan))
    if not records:
        console.print(f"{store.plan.name}: no round committed yet of {total}")
        return EXIT_OK
    last = records[-1]
    console.print(
        f"{store.plan.name}: round {last['round']} of {total} ({last['stage']}), committed {last['finished']}"
    )
    for entry in last["hospitals"]:
        console.print(f"  {entry['site']}: {entry['status']}{' ' + entry['code'] if entry['code'] else ''}")
    return EXIT_OK


def _report(arguments: argparse.Namespace) -> int:
    report = finish(_store(arguments.folder).folder)
    console.print(summary_text(report))
    console.print(f"written: {arguments.folder / 'report.html'}")
    return EXIT_OK


def _store(folder: Path) -> RunStore:
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder}: holds no run; expected a folder with run.json")
    return RunStore(folder, read_plan(folder / "plan.yaml"))
