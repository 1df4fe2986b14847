"""`cxrbase-client ledger`: what left, when, to whom and under which guarantee; for the hospital's own eyes."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.ledger import Entry, Ledger, LedgerError, Seal
from client.site import Site, read_site
from cxrbase_model.files import write_private
from cxrbase_model.settings import SettingsError

console = Console(highlight=False, soft_wrap=True)

_SHOWN = 40  # lines of the table; all are in --json and --html


def add_ledger(commands: Any) -> None:
    """`ledger SITE.yaml [--json | --html FILE] [--verify] [--holds SEAL] [--begin-again REASON]`."""
    parser = commands.add_parser(
        "ledger",
        help="see what has left, when, to whom, and how much privacy is spent; write the privacy officer's statement",
        description="Verify the ledger and print what has left this hospital, with the privacy that is spent. Status 1 where the "
        "ledger was altered or lines are missing; docs/ledger.md says what to do then.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--json", action="store_true", help="print every line as JSON")
    choice.add_argument("--html", type=Path, metavar="FILE", help="write the statement for the privacy officer")
    choice.add_argument("--verify", action="store_true", help="only verify")
    choice.add_argument(
        "--begin-again", metavar="REASON",
        help="put a ledger that cannot be verified aside; no epsilon can be stated from then on",
    )  # fmt: skip
    parser.add_argument("--holds", metavar="SEAL", help="whether the ledger still holds the line of an earlier seal")
    parser.set_defaults(run=_ledger)


def _ledger(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    ledger = Ledger(site.private, site.policy.witness)
    if arguments.begin_again:
        return _begin_again(ledger, arguments.begin_again)
    entries, seal = ledger.entries(), ledger.seal()
    if arguments.holds is not None and not ledger.holds(_seal(arguments.holds)):
        raise LedgerError(
            "ledger: the line of that seal is not in it; lines were taken away, or an old copy was restored"
        )
    if arguments.verify:
        console.print(f"{site.site}: {len(entries)} lines, complete and unaltered. Seal {seal}")
    elif arguments.html is not None:
        from client.statement import page  # imported here: the accountant takes a second

        write_private(arguments.html, page(site, entries, seal).encode())
        console.print(f"{arguments.html}: statement of {len(entries)} lines. Seal {seal}", markup=False)
    elif arguments.json:
        print(json.dumps(_content(site, entries, seal), indent=1))
    else:
        _print(site, entries, seal)
    return 0


def _begin_again(ledger: Ledger, reason: str) -> int:
    try:
        ledger.entries()
    except LedgerError as error:
        aside = ledger.begin_again(f"{reason}; {error}")
        console.print(f"The ledger was put aside to {aside}; keep it. A new one has begun.", markup=False)
        console.print("What was spent before is not known any more, so no epsilon can be stated from now on.")
        return 0
    raise SettingsError(
        "--begin-again: is for a ledger that cannot be verified, and this one is complete and unaltered"
    )


def _seal(text: str) -> Seal:
    if not re.fullmatch(r"\d{1,12}:([0-9a-f]{64})?", text):
        raise SettingsError(f"--holds: expected a seal as the command prints it, number:hash; found {text!r}")
    number, found = text.split(":")
    return Seal(int(number), found)


def _content(site: Site, entries: list[Entry], seal: Seal) -> dict[str, Any]:
    from client.accounting import Account  # imported here: the accountant takes a second

    account, policy = Account.of(entries), site.policy
    spent = {unit: account.epsilon(unit, policy.delta) for unit in ("patient", "picture")}
    return {
        "schema": 1,
        "site": site.site,
        "budget": policy.epsilon,
        "unit": policy.unit,
        "delta": policy.delta,
        "epsilon": {unit: "infinite" if value == math.inf else value for unit, value in spent.items()},
        "releases_without_guarantee": account.unprotected,
        "seal": str(seal),
        "entries": [entry.to_json() for entry in entries],
    }


def _print(site: Site, entries: list[Entry], seal: Seal) -> None:
    from client.statement import KINDS, guarantee, plain, size, standing_in_words

    table = Table(box=None, padding=(0, 1))
    for heading in ("", "UTC", "what", "run", "stage, round", "guarantee", "epsilon", "size"):
        table.add_column(heading, no_wrap=heading in ("", "UTC", "epsilon", "size"))
    for entry in entries[-_SHOWN:]:
        stage = f"{plain(entry.stage)}, {entry.round}" if entry.round else plain(entry.stage)
        table.add_row(
            str(entry.number), entry.time[:16].replace("T", " "), KINDS[entry.kind].short, escape(plain(entry.run)[:6]),
            escape(stage), guarantee(entry), _epsilon(entry), size(entry.bytes),
        )  # fmt: skip
    if len(entries) > _SHOWN:
        console.print(f"The last {_SHOWN} of {len(entries)} lines; --json and --html have all.")
    if entries:
        console.print(table)
    for recipient in sorted({entry.recipient for entry in entries if entry.bytes}):
        console.print(f"To: {plain(recipient) or 'no consortium was joined (a simulation)'}", markup=False)
    for sentence in standing_in_words(site, entries):
        console.print(sentence, markup=False)
    console.print(f"{site.site}: {len(entries)} lines, complete and unaltered. Seal {seal}", markup=False)


def _epsilon(entry: Entry) -> str:
    from client.budget import told

    if entry.after is None:
        return ""
    return told(entry.after) if entry.before is None else f"{told(entry.before)} > {told(entry.after)}"
