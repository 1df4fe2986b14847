"""How pictures are drawn for a training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from cxrbase_model.losses import positive_weights
from cxrbase_model.rows import batch_rows, finding_chances, training_rows

X = np.nan


def table(labels: NDArray[np.float32]) -> SimpleNamespace:
    return SimpleNamespace(labels=labels, patients=np.arange(len(labels)))


def slow_chances(labels: NDArray[np.float32]) -> list[float]:
    """A finding, present or absent, and then a picture that is known to be so, by the definition."""
    cells = [np.flatnonzero(labels[:, c] >= 0.5) for c in range(labels.shape[1])]
    cells += [np.flatnonzero(labels[:, c] < 0.5) for c in range(labels.shape[1])]
    cells = [cell for cell in cells if len(cell)]
    return [sum(1 / len(cell) for cell in cells if row in cell) / len(cells) for row in range(len(labels))]


def test_chances_are_those_of_drawing_a_finding_and_then_a_picture() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3)).astype(np.float32)
    labels[rng.random((40, 3)) < 0.3] = X
    labels[:, 2] = np.where(np.isfinite(labels[:, 2]), 0, X)  # nobody has it
    assert finding_chances(labels) == pytest.approx(slow_chances(labels))


def test_a_rare_finding_comes_as_often_as_its_absence() -> None:
    labels = np.array([[1.0]] * 20 + [[0.0]] * 180, np.float32)
    rows = np.arange(1000, 1200)
    whole = table(np.concatenate([np.zeros((1000, 1), np.float32), labels]))
    drawn = np.concatenate(list(training_rows(whole, rows, 25, seed=1, epochs=10, balance="findings")))
    assert len(drawn) == 2000
    assert abs((drawn < 1020).sum() - 1000) < 4 * np.sqrt(500)
    assert drawn.min() >= 1000


def test_a_single_picture_comes_ten_times_as_often_as_in_turn_at_most() -> None:
    labels = np.zeros((1000, 1), np.float32)
    labels[0] = 1
    assert finding_chances(labels)[0] == pytest.approx(0.01 / 0.51)


def test_without_balance_pictures_come_in_turn() -> None:
    rows, labels = np.arange(23), np.zeros((23, 1), np.float32)
    found = list(training_rows(table(labels), rows, 5, 3, 2.0))
    assert np.array_equal(found, list(batch_rows(rows, 5, 3, 2.0)))


def test_balanced_batches_are_as_many_and_as_large() -> None:
    labels = np.array([[0.0], [1.0]] * 6, np.float32)
    for size, epochs in ((5, 2.0), (50, 0.5)):
        sizes = [
            [len(batch) for batch in training_rows(table(labels), np.arange(12), size, 0, epochs, balance)]
            for balance in ("none", "findings")
        ]
        assert sizes[0] == sizes[1]


def test_positives_that_are_drawn_more_often_weigh_less() -> None:
    labels = np.array([[1.0]] * 20 + [[0.0]] * 180, np.float32)
    assert positive_weights(labels, 4.0).tolist() == [4.0]
    assert positive_weights(labels, 4.0, finding_chances(labels)).tolist() == pytest.approx([1.0])
