"""`cxrbase-client approve`: which code may run here; what it prints is for the hospital's own eyes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.bundles import Bundles, Verdict
from client.site import Site, read_site
from cxrbase_model.bundle import (
    SUFFIXES,
    BundleError,
    Difference,
    bundle_digest,
    bundle_files,
    differences,
    release_files,
)
from cxrbase_model.settings import SettingsError

console = Console(highlight=False, soft_wrap=True)


def add_approve(commands: Any) -> None:
    """`approve SITE.yaml [BUNDLE] [--revoke] [--yes]`."""
    parser = commands.add_parser(
        "approve",
        help="see what code the server wants run that is not installed here, approve it or take that back",
        description="The code of the installed release runs here without being asked for. A server that sends other code is refused "
        "until that code, to the byte, was approved. Shown is what it changes with respect to the installed release.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a file, or the digest of one that was asked for")
    parser.add_argument("--revoke", action="store_true", help="let this code not run any more")
    parser.add_argument("--yes", action="store_true", help="approve without a question, where there is no terminal")
    parser.set_defaults(run=_approve)


def _approve(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    bundles = Bundles(site.private)
    if arguments.bundle is None:
        _list(bundles)
        return 0
    if arguments.revoke:
        digest = bundle_digest(bundles.named(arguments.bundle, "approved"))
        bundles.revoke(digest)
        console.print(f"{site.site}: bundle {digest[:12]} may not run any more.")
        return 0
    bundle = bundles.named(arguments.bundle, "asked")
    if bundles.verdict(bundle) is not Verdict.UNKNOWN:
        console.print(f"{site.site}: bundle {bundle_digest(bundle)[:12]} may run already.")
        return 0
    _show(bundle)
    return _ask(site, bundles, bundle, yes=arguments.yes)


def _show(bundle: bytes) -> None:
    """Print the files that differ from the installed release, then how."""
    try:
        content = bundle_files(bundle)
    except BundleError as error:
        raise SettingsError(f"BUNDLE: {error}") from None
    if hidden := [path for path in content if not path.endswith(SUFFIXES) and path != "pyproject.toml"]:
        raise SettingsError(f"BUNDLE: holds files that nobody can read, such as {hidden[0]!r}; it is not for approval")
    found = differences(content, release_files())
    table = Table("", "file", "lines", box=None, padding=(0, 1))
    for difference in found:
        added, removed = _lines(difference)
        table.add_row(difference.kind, escape(difference.path), f"[green]+{added}[/green] [red]-{removed}[/red]")
    console.print(table)
    for difference in found:
        console.print(f"\n{_printable(difference.diff)}", markup=False)
    console.print(f"\n{len(found)} files differ from the installed release; the bundle is {bundle_digest(bundle)}.")


def _ask(site: Site, bundles: Bundles, bundle: bytes, *, yes: bool) -> int:
    if not yes and not sys.stdin.isatty():
        raise SettingsError("--yes: is needed to approve where there is no terminal to ask at")
    if not yes and input("Approve? [y/N] ").strip().lower() not in ("y", "yes"):
        console.print("Nothing was approved.")
        return 1
    bundles.approve(bundle)
    console.print(f"{site.site}: bundle {bundle_digest(bundle)[:12]} may run.")
    return 0


def _list(bundles: Bundles) -> None:
    table = Table("bundle", "", box=None, padding=(0, 1))
    for kind, state in (("approved", "[green]approved[/green]"), ("asked", "[yellow]waits for approval[/yellow]")):
        for digest in bundles.digests(kind):
            table.add_row(digest[:12], state)
    if table.row_count:
        console.print(table)
    else:
        console.print("No code besides the installed release was asked for or approved.")


def _lines(difference: Difference) -> tuple[int, int]:
    """How many lines a difference adds and removes."""
    lines = difference.diff.splitlines()[2:]
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def _printable(text: str) -> str:
    """A text without characters by which it could make a terminal show something else."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)
