"""`cxrbase-sim audit`: what attacks find out about the pictures behind a training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from sim.audit.config import PhantomPictures, read_audit
from sim.audit.page import bound_rows, member_rows, view_rows
from sim.audit.run import Audit
from sim.progress import StepProgress

console = Console(highlight=False, soft_wrap=True)


def add(commands: Any) -> None:
    """`audit`."""
    audit = commands.add_parser(
        "audit", help="attack a training: who was in it, and which pictures come back from its updates"
    )
    audit.add_argument("config", type=Path, metavar="AUDIT.yaml", help="for example configs/sim/audit.yaml")
    audit.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with a sub-folder a hospital, where hospitals.kind is folders"
    )
    audit.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="results, with what was recovered of the pictures: keep it as you keep them; the same command goes on there",
    )  # fmt: skip
    audit.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    config, subject = read_audit(arguments.config)
    data = None if isinstance(config.hospitals, PhantomPictures) else arguments.data
    audit = Audit(config, subject, data, arguments.out)
    with StepProgress(console) as progress:
        content = audit.run(lambda part: console.print(f"[dim]{part}[/dim]"), progress.update)
    _table(
        "epsilon",
        ["training", "attack", "right guesses", "at least", "most measurable", "stated"],
        list(bound_rows(content)),
    )
    _table(
        "membership",
        ["training", "stated", "attack", "candidates", "area", "at 0.1 % false", "at 1 % false"],
        list(member_rows(content)),
    )
    _table(
        "reconstruction",
        ["seen", "attack", "PSNR", "SSIM", "stranger", "SSIM", "points at", "CPU s"],
        list(view_rows(content)),
    )
    console.print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} min. Open {arguments.out / 'report.html'}, {arguments.out / 'pictures.png'}"
    )
    return 0


def _table(title: str, head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) + 2 for column in range(len(head))]
    console.print(f"\n{title}")
    for row in (head, *rows):
        console.print(
            "  " + "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False
        )
