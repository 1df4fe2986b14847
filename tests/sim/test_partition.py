"""Cuts of a pool into hospitals: patients whole, seeded, skewed as they say."""

from __future__ import annotations

import numpy as np
import pytest

from cxrbase_model.settings import SettingsError
from sim.partition import Dirichlet, Even, Natural, Partition, Quantity, Scanners, assign, grey_values

PATIENTS = np.repeat(np.arange(400), 3)  # three pictures each
POSITIVE = PATIENTS % 2 == 0
HOSPITALS = (PATIENTS >= 240).astype(np.int64)  # 240 patients in `east`, 160 in `west`
NAMES = ["east", "west"]
CUTS: list[Partition] = [
    Even(sites=8),
    Dirichlet(sites=8, alpha=0.1, least=2),
    Dirichlet(sites=8, alpha=0.5),
    Dirichlet(sites=8, alpha=10.0),
    Quantity(sites=8, alpha=0.5),
    Scanners(sites=8),
    Natural(cut={"east": 5, "west": 3}),
]


def cut(partition: Partition, seed: int = 1) -> np.ndarray:
    return assign(partition, PATIENTS, POSITIVE, HOSPITALS, NAMES, seed)


@pytest.mark.parametrize("partition", CUTS, ids=lambda each: each.name)
def test_every_patient_is_whole_in_one_hospital_and_every_hospital_has_some(partition: Partition) -> None:
    sites = cut(partition)
    assert all(len(np.unique(sites[patient == PATIENTS])) == 1 for patient in range(400))
    assert set(sites) == set(range(8))


@pytest.mark.parametrize("partition", CUTS, ids=lambda each: each.name)
def test_the_seed_alone_decides_the_cut(partition: Partition) -> None:
    assert (cut(partition) == cut(partition)).all()
    assert (cut(partition, 1) != cut(partition, 2)).any()


def test_an_even_cut_has_as_many_patients_of_each_class_everywhere() -> None:
    sites = cut(Even(sites=8))
    for site in range(8):
        assert (sites == site).sum() == 150
        assert (POSITIVE & (sites == site)).sum() == 75


def skew(alpha: float) -> float:
    """The mean distance of a hospital's share of positives from one half, over twenty seeds."""
    shares = [
        [POSITIVE[sites == site].mean() for site in range(8)]
        for sites in (cut(Dirichlet(sites=8, alpha=alpha, least=1), seed) for seed in range(20))
    ]
    return float(np.abs(np.array(shares) - 0.5).mean())


def test_a_smaller_alpha_skews_the_findings_more() -> None:
    assert skew(0.1) > 0.35 > skew(0.5) + 0.05
    assert skew(0.5) > 0.15 > skew(10.0)


def test_sizes_differ_and_classes_do_not_in_a_cut_by_quantity() -> None:
    sites = cut(Quantity(sites=8, alpha=0.5, least=16))
    counts = np.bincount(sites, minlength=8)
    assert counts.max() > 3 * counts.min()
    assert counts.min() >= 3 * 16
    assert all(0.25 < POSITIVE[sites == site].mean() < 0.75 for site in range(8))


def test_a_natural_cut_mixes_no_two_hospitals() -> None:
    sites = cut(Natural(cut={"east": 5, "west": 3}))
    assert set(sites[HOSPITALS == 0]) == {0, 1, 2, 3, 4}
    assert set(sites[HOSPITALS == 1]) == {5, 6, 7}


def test_hospitals_that_are_not_named_take_no_part() -> None:
    sites = cut(Even(sites=4, of=("west",)))
    assert (sites[HOSPITALS == 0] == -1).all()
    assert set(sites[HOSPITALS == 1]) == {0, 1, 2, 3}
    assert set(cut(Natural(cut={"west": 2}))) == {-1, 0, 1}


def test_a_hospital_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="expected hospitals among east, west; found north"):
        cut(Even(sites=2, of=("north",)))


def test_more_hospitals_than_patients_are_an_error() -> None:
    with pytest.raises(SettingsError, match="at most one for each of 400 patients, found 500"):
        cut(Even(sites=500))
    with pytest.raises(SettingsError, match="did not come up"):
        cut(Dirichlet(sites=8, alpha=0.1, least=100))


def test_scanners_change_grey_values_in_their_order_and_each_in_its_own_way() -> None:
    tables = [grey_values(Scanners(sites=8), site) for site in range(8)]
    assert all((np.diff(table.astype(int)) >= 0).all() for table in tables)
    assert len({table.tobytes() for table in tables}) == 8
    assert tables[0][128] > 128 > tables[7][128]
    assert (grey_values(Even(sites=8), 3) == np.arange(256)).all()
    assert (grey_values(Scanners(sites=8, strength=0.0), 3) == np.arange(256)).all()
