"""Metrics against slow versions that follow the definition pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cxrbase_model.metrics import (
    auroc,
    average_precision,
    brier,
    calibration_error,
    cells,
    evaluate_scores,
    patient_weights,
)


def slow_auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    up, down = scores[targets == 1], scores[targets == 0]
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(up, down)]))


def slow_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        shown = scores >= threshold
        recall, precision = targets[shown].sum() / targets.sum(), targets[shown].mean()
        total, before = total + (recall - before) * precision, recall
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 6])
def test_auroc_and_average_precision_follow_their_definitions_with_and_without_ties(seed: int, decimals: int) -> None:
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 2, 60).astype(float)
    scores = np.round(0.3 * targets + draw.random(60), decimals)
    assert auroc(scores, targets) == pytest.approx(slow_auroc(scores, targets))
    assert average_precision(scores, targets) == pytest.approx(slow_average_precision(scores, targets))


def test_perfect_inverted_and_constant_scores() -> None:
    targets = np.array([0.0, 0, 1, 1])
    assert auroc(np.array([0.1, 0.2, 0.8, 0.9]), targets) == 1.0
    assert auroc(np.array([0.9, 0.8, 0.2, 0.1]), targets) == 0.0
    assert auroc(np.full(4, 0.5), targets) == 0.5
    assert np.isnan(auroc(np.array([0.1, 0.2]), np.array([1.0, 1.0])))
    assert np.isnan(average_precision(np.array([0.1]), np.array([0.0])))


def test_calibration_and_brier_by_hand() -> None:
    scores, targets = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(scores, targets) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert brier(scores, targets) == pytest.approx((0.0025 + 0.9025 + 0.0025 + 0.0025) / 4)


def test_a_resample_draws_patients_and_not_pictures() -> None:
    patients = np.array([3, 3, 3, 8, 8, 1])
    weights = patient_weights(patients, 50, seed=0)
    assert weights.shape == (50, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 3, 5]].sum(axis=1) == 3).all()


def study(count: int = 240, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 2, (count, 2)).astype(np.float32)
    scores = 0.4 * targets + draw.random((count, 2))
    return scores / 1.4, targets, np.arange(count) // 3


def test_an_evaluation_holds_the_value_inside_its_interval() -> None:
    scores, targets, patients = study()
    result = evaluate_scores(scores, targets, patients, ["A", "B"], seed=0, minimum_cell=5)
    for column, name in enumerate("AB"):
        cell = result["findings"][name]["auroc"]
        assert cell["value"] == pytest.approx(slow_auroc(scores[:, column], targets[:, column]), abs=1e-4)
        assert cell["low"] < cell["value"] < cell["high"]
    mean = result["mean_auroc"]
    assert mean["value"] == pytest.approx(np.mean([result["findings"][n]["auroc"]["value"] for n in "AB"]), abs=1e-4)
    assert (
        mean["high"] - mean["low"] < result["findings"]["A"]["auroc"]["high"] - result["findings"]["A"]["auroc"]["low"]
    )
    assert result["examples"] == 240
    assert result["patients"] == 80


def test_correlated_pictures_of_a_patient_widen_the_interval() -> None:
    scores, targets, _ = study(60)
    scores, targets = (np.repeat(part, 4, axis=0) for part in (scores, targets))
    by_patient = evaluate_scores(scores, targets, np.arange(240) // 4, ["A", "B"], seed=0, minimum_cell=5)
    by_picture = evaluate_scores(scores, targets, np.arange(240), ["A", "B"], seed=0, minimum_cell=5)
    width = [r["mean_auroc"]["high"] - r["mean_auroc"]["low"] for r in (by_patient, by_picture)]
    assert width[0] > 1.5 * width[1]


def test_unknown_labels_count_for_nothing_and_small_cells_do_not_leave() -> None:
    scores, targets, patients = study()
    targets[:, 0] = np.nan
    targets[:3, 0] = 1
    targets[3:90, 0] = 0
    result = evaluate_scores(scores, targets, patients, ["A", "B"], seed=0, minimum_cell=5)
    assert result["findings"]["A"] == {"auroc": None, "positives": "<5", "negatives": ">=5"}
    assert result["mean_auroc"]["value"] == result["findings"]["B"]["auroc"]["value"]


def test_nothing_measurable_gives_no_mean() -> None:
    result = evaluate_scores(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros(0, int), ["A"], seed=0, minimum_cell=5)
    assert result["mean_auroc"] is None
    assert result["findings"]["A"]["positives"] == 0


def test_the_same_seed_gives_the_same_interval() -> None:
    data = study()
    first, again, other = (evaluate_scores(*data, ["A", "B"], seed=s, minimum_cell=5) for s in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((3, 87, 10), ("<5", 87, ">=5")),
        ((3, 87, 0), ("<5", ">=5", 0)),
        ((3, 2, 85), ("<5", "<5", 85)),
        ((5, 87, 10), (5, 87, 10)),
        ((3, 0, 0), ("<5", 0, 0)),
    ],
)
def test_no_small_count_follows_from_the_others_and_the_total(
    counts: tuple[int, ...], told: tuple[int | str, ...]
) -> None:
    assert tuple(cells(dict(zip("abc", counts, strict=True)), 5).values()) == told
