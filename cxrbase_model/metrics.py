"""What is measured of a classifier, in the hospital, on its own patients; only the results here may leave it.

Shapes: N pictures, C findings, R bootstrap resamples. Targets are 1, 0 or NaN where unknown; scores are probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
RESAMPLES = 1000


def auroc(scores_N: Floats, targets_N: Floats) -> float:
    """Area under the ROC curve: the share of positive-negative pairs in the right order, ties half; NaN without both classes."""
    return float(resampled_auroc(scores_N, targets_N, np.ones((1, len(scores_N))))[0])


def average_precision(scores_N: Floats, targets_N: Floats) -> float:
    """Area under the precision-recall curve as the mean precision over recall steps, ties as one step; NaN without positives."""
    order = np.argsort(-scores_N, kind="stable")
    scores, positive = scores_N[order], (targets_N[order] >= 0.5).astype(float)
    if positive.sum() == 0:
        return float("nan")
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    hits = np.cumsum(positive)[last_of_tie]
    shown = (np.arange(len(scores)) + 1)[last_of_tie]
    return float((np.diff(hits, prepend=0.0) * hits / shown).sum() / positive.sum())


def brier(scores_N: Floats, targets_N: Floats) -> float:
    """Mean squared difference of probability and outcome; 0 is perfect, prevalence x (1 - prevalence) says nothing."""
    return float(np.mean((scores_N - targets_N) ** 2)) if len(scores_N) else float("nan")


def calibration_error(scores_N: Floats, targets_N: Floats, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width, weighted by their counts."""
    if not len(scores_N):
        return float("nan")
    index = np.minimum((scores_N * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    gaps = np.bincount(index, weights=scores_N, minlength=bins) - np.bincount(index, weights=targets_N, minlength=bins)
    return float(np.abs(gaps[counts > 0]).sum() / len(scores_N))


def evaluate_scores(
    scores_NC: Floats,
    targets_NC: Floats,
    patients_N: NDArray[np.integer[Any]],
    findings: Sequence[str],
    *,
    seed: int,
    minimum_cell: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """AUROC and relatives per finding with 95 % intervals, ready to leave the hospital.

    Intervals are percentiles of a bootstrap over patients, the same resamples for every finding. A finding with fewer than
    `minimum_cell` positive or negative patients has no numbers, and its counts are bucketed.
    """
    weights_RN = patient_weights(patients_N, resamples, seed)
    content: dict[str, dict[str, Any]] = {}
    point, curves = [], []
    for column, finding in enumerate(findings):
        known = np.isfinite(targets_NC[:, column])
        scores, targets = scores_NC[known, column].astype(float), (targets_NC[known, column] >= 0.5).astype(float)
        people = patients_N[known]
        positives, negatives = (counted(people[targets == side], minimum_cell) for side in (1, 0))
        content[finding] = {
            "auroc": None,
            **cells({"positives": positives, "negatives": negatives}, minimum_cell),
        }
        if min(positives, negatives) < max(1, minimum_cell):
            continue
        value, curve_R = auroc(scores, targets), resampled_auroc(scores, targets, weights_RN[:, known])
        point.append(value)
        curves.append(curve_R)
        content[finding] |= {
            "auroc": _interval(value, curve_R),
            "average_precision": _short(average_precision(scores, targets)),
            "brier": _short(brier(scores, targets)),
            "calibration_error": _short(calibration_error(scores, targets)),
            "prevalence": _short(positives / len(targets)),
        }
    mean = _interval(float(np.mean(point)), _row_means(np.array(curves))) if point else None
    return {
        "examples": len(scores_NC),
        "patients": _cell(len(np.unique(patients_N)), minimum_cell),
        "mean_auroc": mean,
        "findings": content,
    }


def patient_weights(patients_N: NDArray[np.integer[Any]], resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap over patients: how often each picture counts in each resample, [R, N]."""
    _, index = np.unique(patients_N, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count == 0:
        return np.zeros((resamples, 0))
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, index].astype(np.float64)


def resampled_auroc(scores_N: Floats, targets_N: Floats, weights_RN: Floats) -> NDArray[np.float64]:
    """AUROC of each resample, [R], from one sort: every positive counts the negatives below it and half of those it ties with."""
    order = np.argsort(scores_N, kind="stable")
    scores, positive, weights = scores_N[order], targets_N[order] >= 0.5, weights_RN[:, order]
    groups = np.cumsum(np.append(True, scores[1:] != scores[:-1])) - 1 if len(scores) else np.zeros(0, int)
    starts = np.flatnonzero(np.append(True, np.diff(groups) > 0)) if len(scores) else np.zeros(0, int)
    if not len(starts):
        return np.full(len(weights), np.nan)
    up = np.add.reduceat(weights * positive, starts, axis=1)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = np.where(pairs > 0, (up * (below + down / 2)).sum(axis=1) / pairs, np.nan)
    return result


def _row_means(curves_CR: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over findings of each resample, leaving out findings that lost a class in it."""
    known = np.isfinite(curves_CR)
    counts = known.sum(axis=0)
    sums = np.where(known, curves_CR, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _interval(value: float, curve_R: NDArray[np.float64], level: float = 0.95) -> dict[str, float]:
    known = curve_R[np.isfinite(curve_R)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (value, value)
    return {"value": _short(value), "low": _short(float(low)), "high": _short(float(high))}


def cells(counts: Mapping[str, int], minimum_cell: int) -> dict[str, int | str]:
    """Counts that add up to a known total, as they may leave: "<N" below the minimum cell size N.

    A lone "<N" would follow from the total by subtraction, so the smallest other count becomes ">=N" with it.
    """
    told = {name: _cell(count, minimum_cell) for name, count in counts.items()}
    others = {name: count for name, count in told.items() if isinstance(count, int) and count > 0}
    if len([count for count in told.values() if isinstance(count, str)]) == 1 and others:
        told[min(others, key=others.__getitem__)] = f">={minimum_cell}"
    return told


def counted(patients_N: NDArray[np.integer[Any]], minimum_cell: int) -> int:
    """How many pictures, given by their patients; of fewer patients than the minimum cell, how many patients, which is put in a bucket."""
    patients = len(np.unique(patients_N))
    return patients if patients < minimum_cell else len(patients_N)


def _cell(count: int, minimum_cell: int) -> int | str:
    return f"<{minimum_cell}" if 0 < count < minimum_cell else count


def _short(value: float) -> float:
    return round(value, 4)
