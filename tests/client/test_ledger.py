"""The ledger never forgets a release, notices changes, and lets no two tasks pass on one balance."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.ledger import Ledger, LedgerError, OverBudget, Release, epsilon

ONE = Release("run", "detect", 1, noise=2.0, rate=1.0, steps=1)


def test_releases_add_up_and_the_budget_holds(tmp_path: Path) -> None:
    ledger, budget = Ledger(tmp_path), epsilon([ONE] * 3, 1e-5)
    for count in (1, 2, 3):
        assert ledger.reserve(ONE, budget, 1e-5) == epsilon([ONE] * count, 1e-5)
    with pytest.raises(OverBudget):
        ledger.reserve(ONE, budget, 1e-5)
    assert ledger.spent() == [ONE] * 3
    assert (tmp_path / "ledger" / "ledger.sqlite").stat().st_mode & 0o077 == 0


def test_a_changed_entry_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.reserve(ONE, 100, 1e-5)
    base = sqlite3.connect(tmp_path / "ledger" / "ledger.sqlite")
    base.execute("UPDATE entries SET line = replace(line, '2.0', '9.0')")
    base.commit()
    base.close()
    with pytest.raises(LedgerError, match="entry 1 was altered"):
        ledger.reserve(ONE, 100, 1e-5)


def test_of_tasks_at_once_only_those_pass_that_the_budget_carries(tmp_path: Path) -> None:
    ledger, budget = Ledger(tmp_path), epsilon([ONE] * 3, 1e-5)

    def ask(_: int) -> bool:
        try:
            ledger.reserve(ONE, budget, 1e-5)
        except OverBudget:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 3
