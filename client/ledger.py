"""The record of privacy spent, one for life, on the hospital's disk: append-only, each line chained to the one before by SHA-256.

A training's privacy is reserved before it begins and counts as spent from then on, whatever becomes of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from cxrbase_model.files import open_private, private_folder

_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [64, 128, 256, 512, 1024]
_WAIT = 60.0  # seconds for another task's turn
_TABLE = "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, line TEXT NOT NULL, hash TEXT NOT NULL)"


class OverBudget(Exception):
    """The release would spend more than the hospital allows; nothing was reserved."""


class LedgerError(ValueError):
    """The ledger was altered."""


@dataclass(frozen=True)
class Release:
    """A sampled Gaussian mechanism: `noise` in clip norms, `rate` the chance of each unit in a step."""

    run: str
    stage: str
    round: int
    noise: float
    rate: float
    steps: int


class Ledger:
    """The ledger in a private folder."""

    def __init__(self, private: Path) -> None:
        self._path = private_folder(private / "ledger") / "ledger.sqlite"
        open_private(self._path, os.O_RDWR).close()  # 0600 before SQLite writes a byte

    def reserve(self, release: Release, budget: float, delta: float) -> float:
        """Spend a release's privacy; returns epsilon after it. OverBudget where that is above the budget."""
        with closing(self._open()) as base:
            base.execute("BEGIN IMMEDIATE")  # no two tasks look at the same balance
            lines = _verified(base)
            after = epsilon([*(Release(**json.loads(line)) for line in lines), release], delta)
            if not after <= budget:
                raise OverBudget
            line, last = json.dumps(asdict(release), sort_keys=True), _last(base)
            base.execute("INSERT INTO entries (line, hash) VALUES (?, ?)", (line, _chained(last, line)))
            base.execute("COMMIT")
        return after

    def spent(self) -> list[Release]:
        """All releases, oldest first; LedgerError where the chain is broken."""
        with closing(self._open()) as base:
            return [Release(**json.loads(line)) for line in _verified(base)]

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None)
        base.execute("PRAGMA synchronous=EXTRA")
        base.execute(_TABLE)
        return base


def epsilon(releases: list[Release], delta: float) -> float:
    """Epsilon of all releases together, by Renyi accounting (Mironov et al. 2019, arXiv 1908.10530); 0 for none."""
    if not releases:
        return 0.0
    total = sum(compute_rdp(q=r.rate, noise_multiplier=r.noise, steps=r.steps, orders=_ORDERS) for r in releases)
    return float(get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])


def _verified(base: sqlite3.Connection) -> list[str]:
    last = ""
    lines: list[str] = []
    for line, found in base.execute("SELECT line, hash FROM entries ORDER BY number"):
        last = _chained(last, line)
        if found != last:
            raise LedgerError(f"ledger: entry {len(lines) + 1} was altered")
        lines.append(line)
    return lines


def _last(base: sqlite3.Connection) -> str:
    row = base.execute("SELECT hash FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    return str(row[0]) if row else ""


def _chained(last: str, line: str) -> str:
    return hashlib.sha256(f"{last}\n{line}".encode()).hexdigest()
