"""Epsilon is never less than what an accountant that shares no code with it finds, and hardly more than it has to be."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from client.accounting import Account, epsilon
from client.ledger import Entry, LedgerError
from cxrbase_model.privacy import Mechanism
from tests.client.pld import History, loss_epsilon, renyi_epsilon

DELTA = 1e-5
HISTORIES: list[History] = [
    [(1.0, 0.01, 1000)],
    [(2.0, 1.0, 1)],
    [(1.0, 0.02, 900), (1.5, 0.1, 300), (2.0, 0.05, 77)],
    [(0.8, 0.05, 200), (1.3, 0.2, 50)],
    [(4.0, 1.0, 10), (1.1, 0.3, 5)],
]


def spent(history: History, unit: str = "patient") -> list[Mechanism]:
    return [Mechanism(unit, *each) for each in history]


@pytest.mark.parametrize("history", HISTORIES)
def test_epsilon_is_that_of_independent_accountants(history: History) -> None:
    found = epsilon(spent(history), "patient", DELTA)
    assert found == pytest.approx(renyi_epsilon(history, DELTA), rel=5e-3)
    exact = loss_epsilon(history, DELTA)
    assert exact - 4e-5 * sum(steps for _, _, steps in history) <= found <= 1.25 * exact
    prv = PRVAccountant()
    prv.history = [tuple(each) for each in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert prv.get_epsilon(DELTA) == pytest.approx(exact, abs=0.05)
    rdp = RDPAccountant()
    rdp.history = [tuple(each) for each in history]
    assert found == pytest.approx(rdp.get_epsilon(DELTA), rel=5e-3)


def test_the_independent_accountant_knows_the_gaussian_mechanism_in_closed_form() -> None:
    """Balle and Wang 2018, arXiv 1805.06530, theorem 8."""
    from scipy.stats import norm

    for noise in (0.7, 2.0, 6.0):
        found = loss_epsilon([(noise, 1.0, 1)], DELTA)
        delta = norm.cdf(0.5 / noise - found * noise) - math.exp(found) * norm.cdf(-0.5 / noise - found * noise)
        assert delta == pytest.approx(DELTA, rel=2e-3)


def test_order_and_grouping_make_no_difference_and_more_costs_more() -> None:
    one, other = Mechanism("patient", 1.0, 0.02, 10), Mechanism("patient", 2.0, 0.1, 3)
    together = epsilon([one, other, one], "patient", DELTA)
    assert epsilon([Mechanism("patient", 1.0, 0.02, 20), other], "patient", DELTA) == pytest.approx(together, rel=1e-12)
    assert epsilon([other, one, one], "patient", DELTA) == pytest.approx(together, rel=1e-12)
    assert epsilon([one], "patient", DELTA) < epsilon([one, other], "patient", DELTA) < together
    assert epsilon([one], "patient", 1e-7) > epsilon([one], "patient", 1e-5)
    assert epsilon([], "patient", DELTA) == 0.0


def test_a_guarantee_for_pictures_is_none_for_patients() -> None:
    picture = Mechanism("picture", 4.0, 0.01, 10)
    assert epsilon([picture], "patient", DELTA) == math.inf
    assert epsilon([Mechanism("patient", 4.0, 0.01, 10), picture], "patient", DELTA) == math.inf
    assert epsilon([picture], "picture", DELTA) < 1


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 1), (3.0, 20), (1.0, 3)])
def test_a_guarantee_for_patients_is_one_for_pictures_at_twice_the_distance(noise: float, steps: int) -> None:
    """Without sampling, one picture for another moves a patient's part by at most twice the clip: a Gaussian of half the noise."""
    found = epsilon([Mechanism("patient", noise, 1.0, steps)], "picture", DELTA)
    assert found >= renyi_epsilon([(noise / 2, 1.0, steps)], DELTA)
    assert math.isfinite(found)
    assert found > epsilon([Mechanism("patient", noise, 1.0, steps)], "patient", DELTA)


@pytest.mark.parametrize(
    "wrong",
    [
        Mechanism("hospital", 1.0, 0.1, 1), Mechanism("patient", 0.0, 0.1, 1), Mechanism("patient", 1.0, 0.0, 1),
        Mechanism("patient", 1.0, 1.1, 1), Mechanism("patient", 1.0, 0.1, 0), Mechanism("patient", math.nan, 0.1, 1),
    ],
)  # fmt: skip
def test_what_cannot_be_costs_no_less_but_is_an_error(wrong: Mechanism) -> None:
    with pytest.raises(ValueError, match="no mechanism of this kind"):
        epsilon([wrong], "patient", DELTA)


def test_hardly_any_noise_is_hardly_any_guarantee() -> None:
    assert epsilon([Mechanism("patient", 1e-3, 1.0, 1)], "patient", DELTA) > 1e4
    assert epsilon([Mechanism("patient", 1e-200, 0.5, 1)], "patient", DELTA) == math.inf


def test_one_release_without_a_guarantee_leaves_no_epsilon_for_ever() -> None:
    reserve = Entry("reserve", unit="patient", noise=1.0, rate=0.1, steps=1)
    account = Account.of([reserve, Entry("evaluation"), Entry("description"), Entry("commit"), Entry("again")])
    assert account.epsilon("patient", DELTA) == epsilon([Mechanism("patient", 1.0, 0.1, 1)], "patient", DELTA)
    for kind in ("unprotected", "lost"):
        account = Account.of([reserve, Entry(kind), reserve, Entry(kind)])
        assert account.epsilon("patient", DELTA) == account.epsilon("picture", DELTA) == math.inf
        assert account.unprotected == 2
    with pytest.raises(LedgerError, match="does not say what it spends"):
        Account.of([Entry("reserve", unit="patient", noise=1.0)])


def test_a_thousand_entries_are_as_many_divergences_as_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrbase_model import composition

    computed: list[tuple[float, float]] = []
    real = composition._divergence

    def counting(noise: float, rate: float, orders: tuple[float, ...]) -> np.ndarray:
        computed.append((noise, rate))
        return real(noise, rate, orders)

    monkeypatch.setattr(composition, "_divergence", counting)
    many = [Mechanism("patient", 1.0 + (number % 4) / 7, 0.0123, 1) for number in range(1000)]
    started = time.monotonic()
    epsilon(many, "patient", DELTA)
    print(f"1,000 entries of 4 kinds: {time.monotonic() - started:.3f} s")
    assert len(computed) == 4
