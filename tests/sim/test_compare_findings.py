"""Intervals of a comparison's results."""

from __future__ import annotations

import numpy as np
import pytest

from cxrbase_model.metrics import auroc
from sim.compare_findings import Curves, paired


def test_the_interval_of_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 200).astype(float)
    scores = targets + rng.normal(0, 1, 200)
    curves = Curves(targets, np.zeros(200, np.int64), np.arange(200))
    same = paired([0.0], np.array([curves.resampled(scores) - curves.resampled(2 * scores)]))
    assert (same.low, same.high) == (0.0, 0.0), "both are the same order of the same patients"
    alone = paired([curves.value(scores)], np.array([curves.resampled(scores)]))
    assert alone.low < alone.value == auroc(scores, targets) < alone.high


def test_groups_of_one_class_do_not_count() -> None:
    targets = np.array([0.0, 1.0, 1.0, 1.0])
    curves = Curves(targets, np.array([0, 0, 1, 1]), np.arange(4))
    assert curves.value(np.array([0.1, 0.9, 0.2, 0.3])) == 1.0
    with pytest.raises(ValueError, match="both classes"):
        Curves(np.ones(3), np.zeros(3, np.int64), np.arange(3))
