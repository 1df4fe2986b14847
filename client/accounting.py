"""Epsilon of everything that was ever released, by Renyi accounting (Mironov 2017, arXiv 1702.07476).

Renyi accounting and not the tighter PRV accounting (Gopi et al. 2021, arXiv 2106.02848), because the consortium chooses its next plan
knowing the models of the last: a sum of Renyi divergences under a fixed budget is known to hold for parameters that are chosen so
(Feldman and Zrnic 2020, arXiv 2008.11193), a composition of privacy loss distributions is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from client.ledger import Entry, LedgerError
from cxrbase_model.composition import epsilon
from cxrbase_model.privacy import Mechanism

__all__ = ["ACCOUNTANT", "Account", "epsilon"]

ACCOUNTANT = "RDP"


@dataclass(frozen=True)
class Account:
    """What was spent: mechanisms that were reserved, used or not, and how many releases had no guarantee at all."""

    mechanisms: tuple[Mechanism, ...] = ()
    unprotected: int = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Account:
        """The account of a ledger's lines."""
        mechanisms, unprotected = [], 0
        for entry in entries:
            if entry.kind in ("unprotected", "lost"):
                unprotected += 1
            elif entry.kind == "reserve":
                if entry.noise is None or entry.rate is None or entry.steps is None:
                    raise LedgerError(f"ledger: entry {entry.number} does not say what it spends")
                mechanisms.append(Mechanism(entry.unit, entry.noise, entry.rate, entry.steps))
        return cls(tuple(mechanisms), unprotected)

    def plus(self, *mechanisms: Mechanism) -> Account:
        """The account after some more."""
        return Account(self.mechanisms + mechanisms, self.unprotected)

    def epsilon(self, unit: str, delta: float) -> float:
        """Epsilon for a unit, infinite from the first release on that had no guarantee for it."""
        return math.inf if self.unprotected else epsilon(self.mechanisms, unit, delta)
