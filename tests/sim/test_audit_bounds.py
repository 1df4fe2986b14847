"""Lower bounds on epsilon: known values, never above the truth, and above a promise that is not kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from cxrbase_model.composition import epsilon
from cxrbase_model.privacy import Mechanism, Privacy
from sim.audit.bounds import area, best_bound, epsilon_bound, hits_at, most_measurable, p_value, proportion, roc
from sim.audit.membership import _ratio, gradient_canaries


@pytest.mark.parametrize("canaries", [10, 100, 1000])
def test_guesses_that_are_all_right_prove_what_the_formula_says(canaries: int) -> None:
    rate = 0.05 ** (1 / canaries)  # the accuracy at which so many in a row have a chance of 5 %
    assert epsilon_bound(canaries, canaries, canaries, 0.0, 0.95) == pytest.approx(
        math.log(rate / (1 - rate)), abs=1e-6
    )


@pytest.mark.parametrize("correct", [0, 40, 50, 55])
def test_guesses_as_good_as_chance_prove_nothing(correct: int) -> None:
    assert epsilon_bound(100, 100, correct, 0.0, 0.95) == 0.0


def test_the_chance_at_a_delta_is_that_of_the_papers_program() -> None:
    def slow(canaries: int, guesses: int, correct: int, eps: float, delta: float) -> float:
        rate = 1 / (1 + math.exp(-eps))
        beta, alpha, total = binom.sf(correct - 1, guesses, rate), 0.0, 0.0
        for i in range(1, correct + 1):
            total += binom.pmf(correct - i, guesses, rate)
            alpha = max(alpha, total / i)
        return min(float(beta + alpha * delta * 2 * canaries), 1.0)

    for case in [
        (1000, 100, 90, 1.0, 1e-5),
        (1000, 1000, 700, 0.5, 1e-3),
        (50, 20, 20, 2.0, 1e-2),
        (50, 20, 0, 2.0, 1e-2),
    ]:
        assert p_value(*case) == pytest.approx(slow(*case), rel=1e-9)


def test_a_delta_costs_some_of_the_bound() -> None:
    assert epsilon_bound(1000, 200, 190, 1e-3, 0.95) < epsilon_bound(1000, 200, 190, 0.0, 0.95) - 0.1


def test_more_right_guesses_than_guesses_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"correct <= guesses <= canaries, found 11, 10, 100"):
        p_value(100, 10, 11, 1.0, 0.0)


@pytest.mark.parametrize("truth", [0.5, 2.0])
def test_the_bound_is_seldom_above_the_epsilon_of_randomised_response(truth: float) -> None:
    rng = np.random.default_rng(int(10 * truth))
    rate, found = 1 / (1 + math.exp(-truth)), []
    for _ in range(200):
        inside = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < rate, inside, ~inside)
        found.append(best_bound(told + rng.random(1000) / 2, inside, 0.0, 0.95).epsilon)
    wrong = sum(each > truth for each in found)
    assert wrong <= binom.ppf(0.999, 200, 0.05)
    assert np.median(found) > 0.5 * truth, "a bound of zero is never wrong either"


@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0])
def test_gradients_as_canaries_stay_below_what_the_accountant_states(noise: float) -> None:
    mechanism = Mechanism("picture", noise, 1.0, 1)
    stated = epsilon([mechanism], mechanism.unit, 1e-5)
    found = gradient_canaries(Privacy(unit="picture", noise_multiplier=noise), [mechanism], 1000, 0)
    bound = best_bound(found.scores, found.inside, 1e-5, 0.95).epsilon
    assert 0.15 * stated < bound < stated


def test_noise_that_is_less_than_stated_is_found_out() -> None:
    stated = epsilon([Mechanism("picture", 1.0, 1.0, 1)], "picture", 1e-5)
    broken = Privacy(unit="picture", noise_multiplier=0.1)
    found = gradient_canaries(broken, [Mechanism("picture", 1.0, 1.0, 1)], 2000, 0)
    assert best_bound(found.scores, found.inside, 1e-5, 0.95).epsilon > stated


def test_no_attack_can_prove_more_than_is_measurable() -> None:
    inside = np.arange(200) % 2 == 0
    assert best_bound(inside.astype(float), inside, 1e-5, 0.95).epsilon == pytest.approx(
        most_measurable(200, 1e-5, 0.95)
    )


def test_exact_intervals_of_a_proportion_are_those_of_the_tables() -> None:
    assert proportion(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert proportion(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert proportion(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert proportion(0, 0) == (0.0, 1.0)


def test_a_roc_curve_takes_ties_as_one_step() -> None:
    scores, inside = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    false, true = roc(scores, inside)
    assert list(zip(false, true, strict=True)) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]
    assert hits_at(scores, inside, 0.01).value == 0.5
    assert area(scores, inside, np.arange(4)).value == 0.875


def test_the_likelihood_ratio_tells_members_and_the_loss_alone_does_not() -> None:
    rng = np.random.default_rng(0)
    inside = np.argsort(rng.random((16, 300)), axis=0) < 8
    logits = (
        10 * rng.normal(size=300) + 2.0 * inside + rng.normal(size=(16, 300))
    )  # pictures differ more than membership
    ratios = np.concatenate([_ratio(logits, inside, target) for target in range(16)])
    assert area(ratios, inside.reshape(-1), np.tile(np.arange(300), 16)).value > 0.85
    assert area(logits.reshape(-1), inside.reshape(-1), np.tile(np.arange(300), 16)).value < 0.6
