"""`cxrbase-sim faults` and `cxrbase-sim soak`: a consortium of real processes on this machine, and all that can befall it."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cxrbase_model.settings import SettingsError
from server.store import RunStore
from sim.deployment import DeploymentFailed
from sim.faults import Fault, Outcome, fault_plan, run_faults, same_model, table, undisturbed
from sim.reliability import faults_section, soak_section, write_report
from sim.soak import run_soak

console = Console(highlight=False, soft_wrap=True)


def add(commands: Any) -> None:
    """`faults` and `soak`."""
    faults = commands.add_parser(
        "faults",
        help="do every fault of the table to a consortium of real processes, one in each round",
        description="About 20 minutes on two cores. Linux only: processes are found in /proc.",
    )
    faults.add_argument("--only", default="", metavar="WORDS", help="only faults whose name or phase holds these words")
    soak = commands.add_parser(
        "soak",
        help="run eight hospitals while lines drop and machines crash",
        description="About 15 minutes on two cores.",
    )
    soak.add_argument("--rounds", type=int, default=30, metavar="N", help="number of rounds (default 30)")
    soak.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the events (default 0)")
    for parser, run in ((faults, _faults), (soak, _soak)):
        parser.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder of the consortium, new or empty"
        )
        parser.add_argument(
            "--write", type=Path, metavar="FILE.md", help="write the document from what DIR's parent holds"
        )
        parser.set_defaults(run=run)


def _faults(arguments: argparse.Namespace) -> int:
    chosen = [fault for fault in table() if arguments.only in f"{fault.what} {fault.phase}"]
    if not chosen:
        raise SettingsError(f"--only: expected words of a fault's name or phase, found {arguments.only!r}")
    _check_new(arguments.out)
    return _shown(arguments, "faults.md", lambda: _do_faults(arguments.out, chosen))


def _do_faults(out: Path, chosen: list[Fault]) -> str:
    began = time.monotonic()
    outcomes = run_faults(out / "net", chosen, _tell)
    plan = fault_plan(len(chosen))
    same = same_model(out / "net" / "run", undisturbed(out / "alone", plan).folder, plan)
    console.print(f"the final model is {'the same' if same else 'NOT the same'} as without network and faults")
    sessions = (
        len(RunStore(out / "net" / "run", plan).run["sessions"]) - 1
    )  # the first was noted when the folder was made
    return faults_section(
        outcomes, same=same, sessions=sessions, seconds=time.monotonic() - began, cores=os.cpu_count() or 1
    )


def _soak(arguments: argparse.Namespace) -> int:
    if arguments.rounds < 12:
        raise SettingsError(f"--rounds: expected at least 12, found {arguments.rounds}")
    _check_new(arguments.out)
    return _shown(
        arguments,
        "soak.md",
        lambda: soak_section(run_soak(arguments.out, arguments.rounds, arguments.seed, console.print)),
    )


def _shown(arguments: argparse.Namespace, name: str, do: Any) -> int:
    try:
        section = do()
    except DeploymentFailed as error:
        console.print(str(error), markup=False)
        return 1
    (arguments.out.parent / name).write_text(section, encoding="utf-8")
    if arguments.write:
        write_report(arguments.write, arguments.out.parent)
    return 0


def _tell(outcome: Outcome) -> None:
    left_out = f", without {', '.join(outcome.missing)}" if outcome.missing else ""
    console.print(
        f"round {outcome.round}: {outcome.what}, {outcome.phase}: committed {outcome.seconds:.0f} s later, "
        f"attempt {outcome.attempts}{left_out}"
    )


def _check_new(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"--out: expected a new or an empty folder, found {folder} with something in it")
