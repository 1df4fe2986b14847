"""cxrbase-sim: simulate hospitals on one machine."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from client.site import read_site
from cxrbase_model.plan import Plan, timeline
from cxrbase_model.settings import SettingsError
from server.app import RunSettings
from server.examples import Examples
from server.finish import finish
from server.report import summary_text
from server.rounds import RunFailed
from server.store import StoreError
from sim import arrays, audit_commands, compare_commands, network_commands, packing, study_commands
from sim.config import SimConfig, read_config
from sim.hospitals import write_hospitals
from sim.phantom_patient import FINDINGS
from sim.phantom_sheet import contact_sheet, example_pictures
from sim.prepare import fix_secret, prepare
from sim.progress import RoundProgress, StepProgress
from sim.runner import simulate

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

console = Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (SettingsError, StoreError) as error:
        print(f"cxrbase-sim: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RunFailed as error:
        print(f"cxrbase-sim: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\ncxrbase-sim: interrupted; the same command with --resume goes on at the next round", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxrbase-sim",
        description="Simulate a consortium on one machine: made-up or real hospitals, the real server and client code.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="write made-up hospitals as DICOM archives, each with a SITE.yaml")
    phantom.add_argument("--hospitals", type=int, default=3, metavar="N", help="number of hospitals (default 3)")
    phantom.add_argument("--pictures", type=int, default=320, metavar="N", help="frontal pictures each (default 320)")
    phantom.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed writes the same files (default 0)"
    )
    phantom.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the hospitals")
    phantom.set_defaults(run=_phantom)

    run = commands.add_parser("run", help="run a plan over simulated hospitals and write a report")
    run.add_argument("config", type=Path, metavar="CONFIG.yaml", help="for example configs/sim/demo.yaml")
    run.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="run directory: checkpoints, records, report"
    )
    run.add_argument("--data", type=Path, metavar="DIR", help="folder of the hospitals, instead of the configuration's")
    run.add_argument("--seed", type=int, metavar="N", help="seed of the run, instead of the plan's")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    run.set_defaults(run=_run)
    arrays.add(commands)
    network_commands.add(commands)
    study_commands.add(commands)
    packing.add(commands)
    compare_commands.add(commands)
    audit_commands.add(commands)
    return parser


def _phantom(arguments: argparse.Namespace) -> int:
    if list(arguments.out.glob("*/SITE.yaml")):
        console.print(f"{arguments.out} holds hospitals already; nothing written")
        return EXIT_OK
    for name, value, low in (("--hospitals", arguments.hospitals, 1), ("--pictures", arguments.pictures, 20)):
        if value < low:
            raise SettingsError(f"{name}: expected at least {low}, found {value}")
    try:
        with StepProgress(console) as progress:
            sites = write_hospitals(
                arguments.out, arguments.hospitals, arguments.pictures, arguments.seed, progress.update
            )
    except (ValueError, FileExistsError) as error:
        raise SettingsError(str(error)) from None
    for file in sites:
        site = read_site(file)
        fix_secret(site.private, site.site)
    sheet = contact_sheet(arguments.out / "phantoms.png", seed=arguments.seed)
    console.print(f"{len(sites)} hospitals in {arguments.out}, examples of each finding in {sheet}")
    console.print(f"next: cxrbase-client ingest {sites[0]} --plan configs/plans/demo.yaml")
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    started = time.monotonic()
    config, plan = read_config(arguments.config)
    if arguments.seed is not None:
        plan = dataclasses.replace(plan, seed=arguments.seed)
    data = arguments.data or config.data
    if data is None:
        raise SettingsError(f"{arguments.config}: data: is required here or by --data (folder of the hospitals)")
    resume = arguments.resume and (arguments.out / "run.json").exists()
    if not resume and (arguments.out / "run.json").exists():
        raise StoreError(f"{arguments.out}: holds a run already; go on with it by --resume, or name another folder")
    with StepProgress(console) as steps:
        sites = prepare(config, plan, data, arguments.out, steps.update)
    _train(sites, config, plan, arguments.out, resume=resume)
    report = finish(arguments.out, Examples(example_pictures(plan.data.image_size), FINDINGS))
    console.print()
    console.print(summary_text(report))
    _next_steps(arguments.out, sites[0], time.monotonic() - started)
    return EXIT_OK


def _train(sites: list[Path], config: SimConfig, plan: Plan, out: Path, *, resume: bool) -> None:
    console.print(f"{plan.name}: {len(sites)} hospitals, {len(timeline(plan))} rounds, plan {plan.digest[:12]}")
    if config.seeded_noise and plan.privacy is not None:
        console.print("privacy noise is seeded: a run that protects nobody")
    settings = RunSettings(out, plan, resume=resume, expected=len(sites), noise_seed=config.noise_seed)
    with RoundProgress(console, plan) as rounds:
        simulate(sites, settings, config, [rounds.update])


def _next_steps(out: Path, site: Path, seconds: float) -> None:
    console.print(f"\nDone in {seconds / 60:.1f} min. Open:")
    for name, what in (
        ("report.html", "the report"),
        ("export/encoder", "the foundation model"),
        ("export/classifier", "the classifier"),
    ):
        console.print(f"  {out / name}  [dim]{what}[/dim]")
    console.print(f"  tensorboard --logdir {out / 'tensorboard'}")
    console.print("Next, for a")
    console.print(
        f"  researcher: cxrbase-sim run configs/sim/folders.yaml --data YOUR_FOLDERS --out {out.parent / 'real'}"
    )
    console.print(f"  hospital:   cxrbase-client audit {site}")
    console.print("  operator:   cxrbase-server plan configs/plans/demo.yaml")


if __name__ == "__main__":
    sys.exit(main())
