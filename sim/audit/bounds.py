"""From guesses to a guarantee that cannot hold: lower bounds on epsilon, ROC curves and their intervals.

A mechanism is (epsilon, delta)-private for units that are added or removed. What is measured can prove that it is not more private
than a bound, never that it is as private as is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from cxrbase_model.metrics import auroc, patient_weights, resampled_auroc

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BISECTIONS = 40
_MOST = 100.0  # an epsilon beyond which nothing is looked for


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest chance of at least so many correct guesses about canaries that were in by the toss of a coin, in an
    (epsilon, delta)-private training (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, theorem 5.2 and appendix D).

    Guesses that were withheld are not among `guesses`. ValueError unless 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"guesses: expected 0 <= correct <= guesses <= canaries, found {correct}, {guesses}, {canaries}"
        )
    rate = 1 / (1 + math.exp(-epsilon))
    chance = float(binom.sf(correct - 1, guesses, rate))
    if delta == 0 or correct == 0:
        return min(1.0, chance)
    steps = np.arange(1, correct + 1)
    sums = np.cumsum(binom.pmf(correct - steps, guesses, rate))
    return min(1.0, chance + float(np.max(sums / steps)) * delta * 2 * canaries)


def epsilon_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that so many correct guesses refute with that confidence; 0 where they refute none."""
    low, high = 0.0, _MOST
    if p_value(canaries, guesses, correct, low, delta) > 1 - confidence:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon, and the guesses that give it."""

    epsilon: float
    guesses: int
    correct: int


def best_bound(
    scores_M: Floats,
    inside_M: Bools,
    delta: float,
    confidence: float,
    shares: Sequence[float] = (0.05, 0.1, 0.25, 0.5, 1.0),
) -> Bound:
    """The best bound of several numbers of guesses that were fixed in advance, which the confidence is corrected for.

    Of each share, half is guessed to be inside (the highest scores), half outside (the lowest); the rest is not guessed.
    """
    canaries, order = len(scores_M), np.argsort(scores_M, kind="stable")
    corrected = 1 - (1 - confidence) / len(shares)
    best = Bound(0.0, 0, 0)
    for share in shares:
        half = max(1, round(share * canaries / 2))
        half = min(half, canaries // 2)
        correct = int(inside_M[order[canaries - half :]].sum() + (~inside_M[order[:half]]).sum())
        found = Bound(epsilon_bound(canaries, 2 * half, correct, delta, corrected), 2 * half, correct)
        if found.epsilon > best.epsilon or best.guesses == 0:
            best = found
    return best


def most_measurable(canaries: int, delta: float, confidence: float, shares: int = 5) -> float:
    """The bound of a training that gives every canary away: no number of correct guesses can prove more."""
    return epsilon_bound(canaries, canaries, canaries, delta, 1 - (1 - confidence) / shares)


def proportion(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934); 0 to 1 of none."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, of - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, of - hits)) if hits < of else 1.0
    return low, high


def roc(scores_M: Floats, inside_M: Bools) -> tuple[Floats, Floats]:
    """False and true positive rates of every threshold, from (0, 0) to (1, 1); ties are one step."""
    order = np.argsort(-scores_M, kind="stable")
    scores, inside = scores_M[order], inside_M[order]
    last = np.append(scores[1:] != scores[:-1], True)
    true, false = np.cumsum(inside)[last], np.cumsum(~inside)[last]
    return np.append(0.0, false / max(1, int((~inside_M).sum()))), np.append(0.0, true / max(1, int(inside_M.sum())))


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def area(scores_M: Floats, inside_M: Bools, clusters_M: NDArray[np.int64], seed: int = 0) -> Interval:
    """Area under the ROC curve, its interval by a bootstrap over clusters: what belongs to one picture goes together."""
    targets = inside_M.astype(np.float64)
    curve = resampled_auroc(scores_M, targets, patient_weights(clusters_M, 1000, seed))
    low, high = np.nanquantile(curve, [0.025, 0.975])
    return Interval(auroc(scores_M, targets), float(low), float(high))


def hits_at(scores_M: Floats, inside_M: Bools, false_rate: float) -> Interval:
    """The true positive rate at a false positive rate of at most `false_rate`, with its exact interval."""
    false, true = roc(scores_M, inside_M)
    value, members = float(true[false <= false_rate].max()), int(inside_M.sum())
    return Interval(value, *proportion(round(value * members), members))
