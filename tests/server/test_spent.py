"""The count of what hospital-level privacy has spent: equal to Opacus' accountant, and never less after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from server.spent import FILE, Spent, Sum, epsilon


@pytest.mark.parametrize(("noise", "rounds"), [(0.5, 1), (1.0, 1), (1.0, 100), (4.0, 1000)])
def test_the_accountant_equals_opacus_and_bounds_the_exact_epsilon(noise: float, rounds: int) -> None:
    accountant = RDPAccountant()
    for _ in range(rounds):
        accountant.step(noise_multiplier=noise, sample_rate=1.0)
    found = epsilon([noise] * rounds, 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert found <= accountant.get_epsilon(1e-5) + 1e-9, "more orders can only be tighter"
    assert exact(noise / math.sqrt(rounds), 1e-5) <= found < 1.2 * exact(noise / math.sqrt(rounds), 1e-5)


def exact(noise: float, delta: float) -> float:
    """The least epsilon of one Gaussian mechanism (theorem 8 of Balle and Wang 2018, arXiv 1805.06530)."""

    def excess(value: float) -> float:
        a, b = 1 / (2 * noise), value * noise
        return float(norm.cdf(a - b) - math.exp(value + norm.logcdf(-a - b)) - delta)

    return float(brentq(excess, 0.0, 600.0))


def test_rounds_of_different_noise_add_up() -> None:
    assert epsilon([1.0, 2.0], 1e-5) == pytest.approx(epsilon([1 / math.sqrt(1.25)], 1e-5), rel=1e-6)
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([1.0, 0.0], 1e-5) == math.inf
    assert 0 <= epsilon([1000.0], 0.1) < 0.01


def test_a_hospital_counts_the_sums_that_it_was_asked_for(tmp_path: Path) -> None:
    spent = Spent(tmp_path)
    spent.add(Sum(1, 1, 1.0, ("a", "b")))
    spent.add(Sum(2, 1, 1.0, ("a",)))
    assert spent.epsilons(1e-5) == {"a": epsilon([1.0, 1.0], 1e-5), "b": epsilon([1.0], 1e-5)}
    assert spent.most() == 2


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_a_line_that_a_kill_tore_hides_no_other(tmp_path: Path, left: int) -> None:
    spent = Spent(tmp_path)
    spent.add(Sum(1, 1, 1.0, ("a", "b")))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + whole[:left])
    again = Spent(tmp_path)
    again.add(Sum(2, 1, 2.0, ("a",)))
    assert [made.round for made in again.sums()] == [1, 2]
