"""cxrbase-server: what a consortium's operator does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from rich.console import Console
from rich.table import Table

from cxrbase_model.plan import read_plan, timeline
from cxrbase_model.settings import SettingsError
from server import run_commands
from server.authority import days_left
from server.consortium import read_consortium, settle
from server.enrolment import enrol, enrolled, kit, kit_file, provision, revoke
from server.store import RunStore, StoreError

EXIT_OK, EXIT_USAGE = 0, 2

_WARN_DAYS = 30  # before a certificate ends

console = Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 2 wrong usage, settings, plan or run directory; for runs see `run_commands.EXITS`."""
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
    setup = commands.add_parser(
        "provision", help="make the consortium's authority, its server's certificate, and a kit for each hospital"
    )
    setup.add_argument("consortium", type=Path, metavar="CONSORTIUM.yaml", help="the consortium's settings")
    setup.add_argument("--renew", action="store_true", help="make a new server certificate")
    setup.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for all of it; written to the settings as `home`"
    )
    setup.set_defaults(run=_provision)
    enrolment = commands.add_parser("enrol", help="take in the public key that a hospital has sent")
    enrolment.add_argument("consortium", type=Path, metavar="CONSORTIUM.yaml", help="the consortium's settings")
    enrolment.add_argument("hospital", metavar="HOSPITAL", help="the hospital's name")
    enrolment.add_argument("key", type=Path, metavar="KEY.pub", help="the file that cxrbase-client join has made")
    enrolment.add_argument("--replace", action="store_true", help="let it take the place of another key")
    enrolment.set_defaults(run=_enrol)
    revocation = commands.add_parser("revoke", help="take a hospital's key out of the enrolled ones")
    revocation.add_argument("consortium", type=Path, metavar="CONSORTIUM.yaml", help="the consortium's settings")
    revocation.add_argument("hospital", metavar="HOSPITAL", help="the hospital's name")
    revocation.set_defaults(run=_revoke)
    run_commands.add(commands)
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


def _provision(arguments: argparse.Namespace) -> int:
    consortium = read_consortium(arguments.consortium)
    if arguments.out is not None:
        consortium = settle(arguments.consortium, consortium, arguments.out)
    authority = provision(consortium, renew=arguments.renew)
    keys, width = enrolled(consortium), max(map(len, consortium.hospitals))
    for hospital in consortium.hospitals:
        state = "enrolled" if hospital in keys else "not yet enrolled; its kit to send is"
        console.print(
            f"{hospital:{width}}  {state} {'' if hospital in keys else kit_file(consortium, hospital)}".rstrip()
        )
    console.print(f"authority: {_validity(authority.certificate())}, fingerprint to tell by telephone:")
    console.print(f"  {kit(consortium, consortium.hospitals[0]).fingerprint}")
    console.print(f"server:    {_validity(authority.server_certificate())}")
    return EXIT_OK


def _validity(certificate: x509.Certificate) -> str:
    left = days_left(certificate)
    told = f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}, {left} days"
    return f"[red]{told}[/red]; run provision --renew" if left < _WARN_DAYS else told


def _enrol(arguments: argparse.Namespace) -> int:
    consortium = read_consortium(arguments.consortium)
    enrol(consortium, arguments.hospital, arguments.key, replace=arguments.replace)
    missing = [hospital for hospital in consortium.hospitals if hospital not in enrolled(consortium)]
    console.print(f"{arguments.hospital}: enrolled. Not yet: {', '.join(missing) or 'none'}.")
    return EXIT_OK


def _revoke(arguments: argparse.Namespace) -> int:
    revoke(read_consortium(arguments.consortium), arguments.hospital)
    console.print(f"{arguments.hospital}: its key is not enrolled any more.")
    return EXIT_OK


def _report(arguments: argparse.Namespace) -> int:
    from server.finish import finish  # torch and timm take seconds that the other commands need not wait
    from server.report import summary_text

    report = finish(_store(arguments.folder).folder)
    console.print(summary_text(report))
    console.print(f"written: {arguments.folder / 'report.html'}")
    return EXIT_OK


def _store(folder: Path) -> RunStore:
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder}: holds no run; expected a folder with run.json")
    return RunStore(folder, read_plan(folder / "plan.yaml"))
