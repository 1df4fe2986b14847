"""The sub-commands about the archive: ingest, verify, audit, forget; what they print is for the hospital's own eyes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from client.archive.audit import audit, fields
from client.archive.cache import verify_cache
from client.archive.finish import Summary
from client.archive.ingest import ingest
from client.archive.reasons import Reason
from client.site import Site, read_site
from cxrbase_model.plan import read_plan

console = Console(highlight=False, soft_wrap=True)


def add_ingest(commands: Any) -> None:
    """`ingest SITE.yaml --plan PLAN.yaml`."""
    parser = commands.add_parser(
        "ingest",
        help="make or update the private training cache from the archive",
        description="Read the archive of a site into its private training cache. Interrupt it at any time; the same command "
        "goes on. Run it again when files were added: only new and changed ones are read.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument(
        "--plan", type=Path, required=True, metavar="PLAN.yaml", help="the training plan the cache is made for"
    )
    parser.add_argument(
        "--again", action="store_true", help="read every file anew, also those known from earlier ingests"
    )
    parser.add_argument("--accept-loss", action="store_true", help="go on although most of the known files are gone")
    parser.set_defaults(run=_ingest)


def add_verify(commands: Any) -> None:
    """`verify SITE.yaml`."""
    parser = commands.add_parser("verify", help="compare the cache with its checksums")
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.set_defaults(run=_verify)


def add_audit(commands: Any) -> None:
    """`audit SITE.yaml`."""
    parser = commands.add_parser(
        "audit",
        help="list every field that is kept, and prove that nothing in the cache names anyone",
        description="List every field of the cache, compare each file with what it may hold, search it for the identifiers of "
        "all files of the archive, and render pictures again to compare them.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("--pictures", type=int, default=64, metavar="N", help="pictures to render again (default 64)")
    parser.set_defaults(run=_audit)


def add_forget(commands: Any) -> None:
    """`forget SITE.yaml --patient ID`."""
    parser = commands.add_parser(
        "forget",
        help="remove every trace of a patient, and never take them again",
        description="Remove a patient's pictures, labels, keys and file names from the private folder. One keyed hash stays, by "
        "which later ingests leave the patient out. The archive and models that were trained before are not changed.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("--patient", required=True, metavar="ID", help="the patient's identifier, as in the archive")
    parser.set_defaults(run=_forget)


def _ingest(arguments: argparse.Namespace) -> int:
    site, plan = read_site(arguments.site), read_plan(arguments.plan)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{site.site}: listing", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, description=f"{site.site}: reading", completed=done, total=total)

        summary = ingest(site, plan.data, progress=update, again=arguments.again, accept_loss=arguments.accept_loss)
    _print_summary(site, summary)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    index = verify_cache(site.cache_folder)
    console.print(f"{site.site}: {index.rows} pictures in {len(index.shards)} shards, every checksum is right")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    table = Table("file", "field", "what is kept", box=None, padding=(0, 1))
    for row in fields():
        table.add_row(*row)
    console.print(table)
    with console.status("comparing the cache with the archive"):
        checks = audit(site, arguments.pictures)
    for check in checks:
        console.print(f"[green]ok[/green]    {check.text}" if check.passed else f"[red]WRONG[/red] {check.text}")
    passed = all(check.passed for check in checks)
    console.print(
        f"{site.site}: nothing in the cache names anyone." if passed else f"{site.site}: look at what is WRONG above."
    )
    return 0 if passed else 1


def _forget(arguments: argparse.Namespace) -> int:
    # imported here: it loads torch, 500 MB that the daemon, which shares this module, need not hold
    from client.archive.forget import forget

    site = read_site(arguments.site)
    done = forget(site, arguments.patient)
    spooled = f", {done.spooled} spooled files" if done.spooled else ""
    console.print(
        f"{site.site}: removed {done.pictures} pictures and {done.files} entries{spooled}; the patient is not taken again."
    )
    console.print("The archive itself, its label file, and models trained before are as they were.")
    return 0


class _Rate(ProgressColumn):
    """Files a second."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first file."""
        return Text(f"{task.speed:.0f} files/s" if task.speed else "", style="dim")


def _print_summary(site: Site, summary: Summary) -> None:
    rate = f", {summary.new / summary.seconds:.0f} files/s" if summary.new > 50 else ""
    console.print(
        f"[bold]{site.site}[/bold]: {summary.new} files read, {summary.unchanged} unchanged, {summary.seconds:.1f} s{rate}"
    )
    table = Table("", "", "", box=None, show_header=False, padding=(0, 1))
    splits = ", ".join(f"{count} {name}" for name, count in summary.splits.items())
    table.add_row(
        "used", f"[bold]{summary.used}[/bold]", f"pictures of {summary.patients} patients: {splits}", style="green"
    )
    for reason, count in summary.excluded.items():
        table.add_row(reason, str(count), Reason(reason).description)
    console.print(table)
    _print_labels(summary)
    for code, count in summary.failures.items():
        console.print(
            f"[yellow]{count} studies or pictures could not be had ({code}); the next ingest tries again.[/yellow]"
        )
    console.print(f"Every file and why it was left out: {site.private / 'exclusions.csv'}")
    console.print(f"Pictures and distributions to look at: {site.private / 'ingest.html'}")


def _print_labels(summary: Summary) -> None:
    if not summary.labelled:
        console.print("No labels: the pictures take part in pretraining only.")
        return
    table = Table("finding", box=None, padding=(0, 1))
    for name in ("present", "absent", "uncertain", "unknown", "prevalence"):
        table.add_column(name, justify="right")
    for finding, counts in summary.findings.items():
        known = counts["positive"] + counts["negative"]
        share = f"{counts['positive'] / known:.1%}" if known else "-"
        table.add_row(finding, *(str(counts[key]) for key in ("positive", "negative", "uncertain", "unknown")), share)
    console.print(table)
    if summary.unmatched:
        console.print(f"{summary.unmatched} label rows belong to no used picture.")
