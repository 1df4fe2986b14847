"""Pooled pictures: identifiers that are no person's, and shares of the labelled patients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sim.pool import Pool, stratified_share


@pytest.fixture
def pool() -> Any:
    """Two hospitals of a hundred pictures, four of one patient each; the second has no picture without the finding."""
    labels = np.tile(np.array([0, 0, 0, 1], np.float32), 50)[:, None]
    labels[100:] = 1
    hospitals = np.repeat([0, 1], 100)
    table: Any = SimpleNamespace(
        labels=labels, hospitals=hospitals, patients=np.repeat(np.arange(100), 2), splits=np.zeros(200, np.uint8)
    )
    table.cells = lambda rows: Pool.cells(table, rows)
    return table


def test_a_share_has_patients_of_each_hospital_with_and_without_the_finding(pool: Any) -> None:
    rows = stratified_share(pool, np.arange(200), 0.01, 1)
    assert len(np.unique(pool.patients[rows])) == 3
    assert np.unique(pool.cells(rows)).tolist() == [0, 1, 3]


def test_a_smaller_share_is_part_of_a_larger_one_and_seeds_draw_others(pool: Any) -> None:
    small, large, other = (stratified_share(pool, np.arange(200), *which) for which in ((0.1, 1), (0.5, 1), (0.1, 2)))
    assert np.isin(small, large).all()
    assert small.tolist() != other.tolist()
    assert stratified_share(pool, np.arange(200), 1.0, 1).tolist() == list(range(200))


def test_all_pictures_of_a_chosen_patient_are_in_the_share(pool: Any) -> None:
    rows = stratified_share(pool, np.arange(200), 0.2, 3)
    assert (np.unique(pool.patients[rows], return_counts=True)[1] == 2).all()


def test_pictures_of_an_identifier_of_too_many_are_patients_of_their_own(pool: Any) -> None:
    pool.patients[:60] = 0
    pool.patients[100:] += 1 << 32
    Pool._take_apart(pool, 10, 0.2, 0.3)
    assert len(np.unique(pool.patients[:60])) == 60
    assert not np.isin(pool.patients[:60], pool.patients[60:]).any()
    shares = np.bincount(pool.splits[:60], minlength=3) / 60
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.25)
    assert (pool.splits[60:] == 0).all()
