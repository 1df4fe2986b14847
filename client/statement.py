"""The ledger in plain words and as a page for the privacy officer: what left, when, to whom, and under which guarantee."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

from client.accounting import Account
from client.budget import told, told_left
from client.ledger import Entry, Seal
from client.site import Site

_COUNTS = "no noise; small counts hidden"
_MOST_LINES = 5000  # of the page; JSON has all


@dataclass(frozen=True)
class Kind:
    """How a sort of line is called."""

    short: str
    title: str


KINDS = {
    "reserve": Kind("reserved", "Privacy reserved"),
    "commit": Kind("update", "Model update with a guarantee"),
    "unprotected": Kind("update", "Model update without a guarantee"),
    "evaluation": Kind("evaluation", "Evaluation of a model"),
    "description": Kind("description", "Description of the collection"),
    "exchange": Kind("secure exchange", "Step of secure aggregation: keys, or an update under masks"),
    "again": Kind("sent again", "An earlier answer, sent again"),
    "lost": Kind("LEDGER LOST", "An earlier ledger was lost"),
}

_WORDS = {
    "update": "changes of the model's weights", "loss": "training loss", "evaluation": "accuracy on held-out patients",
    "description": "bucketed counts", "validation_loss": "loss on held-out pictures",
    "validation_auroc": "accuracy on held-out pictures",
}  # fmt: skip


def page(site: Site, entries: list[Entry], seal: Seal) -> str:
    """The statement as HTML that fetches nothing, for a verified ledger."""
    environment = Environment(loader=PackageLoader("client"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    policy, account = site.policy, Account.of(entries)
    spent = account.epsilon(policy.unit, policy.delta)
    environment.filters |= {"plain": plain, "size": size, "guarantee": guarantee, "told": _told}
    return environment.get_template("ledger.html").render(
        site=site.site,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        policy=policy,
        least=site.least_patients,
        account=account,
        spent=spent,
        other=account.epsilon("picture", policy.delta) if policy.unit == "patient" else None,
        share=0.0 if policy.epsilon is None else min(1.0, spent / policy.epsilon if policy.epsilon else 1.0),
        left=None if policy.epsilon is None else told_left(max(0.0, policy.epsilon - spent)),
        bet=_bet(spent),
        chance=f"1 in {1 / policy.delta:,.0f}",
        groups=_groups(entries),
        recipients=[(name, *_totals(name, entries)) for name in sorted({e.recipient for e in entries if e.bytes})],
        unused=_unused(entries),
        lost=[entry for entry in entries if entry.kind == "lost"],
        entries=entries[-_MOST_LINES:],
        total=len(entries),
        kinds=KINDS,
        infinity=math.inf,
        seal=seal,
    )


def standing_in_words(site: Site, entries: list[Entry]) -> list[str]:
    """Budget, what is spent, and what has no guarantee, a sentence each."""
    policy, account = site.policy, Account.of(entries)
    spent = account.epsilon(policy.unit, policy.delta)
    said = []
    if account.unprotected:
        said.append(
            f"No epsilon can be stated for this hospital: {account.unprotected} releases had no guarantee."
        )  # fmt: skip
    elif spent == math.inf:
        said.append(
            f"No epsilon can be stated for a {policy.unit}: a training gave a guarantee for single pictures only."
        )
    else:
        said.append(f"Epsilon {told(spent)} is spent for a {policy.unit}, at delta {policy.delta:g}, by all trainings.")
    if policy.epsilon is None:
        said.append("policy.epsilon sets no budget.")
    else:
        said.append(f"The budget is {told(policy.epsilon)}; {told_left(max(0.0, policy.epsilon - spent))} is left.")
    others = sum(entry.kind in ("evaluation", "description") for entry in entries)
    if others:
        said.append(
            f"Besides, {others} evaluations and descriptions left. They carry no noise; no epsilon counts them."
        )
    if unused := _unused(entries):
        said.append(
            f"{len(unused)} reservations led to no release (stopped or refused trainings); they count as spent."
        )
    return said


def guarantee(entry: Entry) -> str:
    """A line's guarantee in a few words."""
    if entry.kind in ("unprotected", "lost"):
        return "none"
    if entry.noise is None or entry.rate is None:
        return {"evaluation": _COUNTS, "description": _COUNTS, "again": "as before"}.get(entry.kind, "")
    return f"{entry.unit}, noise {entry.noise:g}, rate {entry.rate:.3g}, steps {entry.steps}"


def size(count: int) -> str:
    """A number of bytes as people read it; empty for none."""
    if count < 1000:
        return f"{count} B" if count else ""
    power = min(3, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}"


def plain(text: str) -> str:
    """A text that a server chose, without control characters."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _told(value: float | None) -> str:
    return "" if value is None else told(value)


def _bet(spent: float) -> str:
    """How sure somebody can become at most who had thought both equally likely, in percent, rounded up."""
    return "" if spent > 12 else f"{min(99.9, math.ceil(1000 / (1 + math.exp(-spent))) / 10):g}"


def _unused(entries: Iterable[Entry]) -> list[Entry]:
    """Reservations that no commit has used."""
    entries = list(entries)
    used = {number for entry in entries for number in entry.reservations}
    return [entry for entry in entries if entry.kind == "reserve" and entry.number not in used]


def _shared(guarantees: Iterable[str]) -> str:
    found = set(guarantees)
    return found.pop() if len(found) == 1 else "different ones, see the annex"


def _totals(name: str, entries: Iterable[Entry]) -> tuple[int, str]:
    sizes = [entry.bytes for entry in entries if entry.recipient == name and entry.bytes]
    return len(sizes), size(sum(sizes))


def _groups(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """What left, a row for each run, stage and kind, oldest first."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        if entry.bytes:
            groups.setdefault((entry.run, entry.plan, entry.stage, entry.kind, entry.recipient), []).append(entry)
    return [
        {
            "first": some[0].time[:10], "last": some[-1].time[:10], "times": len(some), "entry": some[-1],
            "kind": KINDS[some[0].kind], "bytes": size(sum(entry.bytes for entry in some)),
            "guarantee": _shared(guarantee(entry) for entry in some),
            "before": some[0].before, "after": some[-1].after,
            "left": sorted({_WORDS.get(name, name) for entry in some for name in entry.left}),
        }
        for some in groups.values()
    ]  # fmt: skip
