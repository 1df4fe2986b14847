"""Privacy noise is normal, new each time, and repeats only where it was seeded."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from cxrbase_model.normals import NoiseSource


@pytest.mark.parametrize("seed", [None, 3])
def test_noise_is_standard_normal(seed: int | None) -> None:
    found = NoiseSource(seed).normal(200_001)
    assert abs(float(found.mean())) < 0.015  # 6.7 standard errors
    assert abs(float(found.var()) - 1) < 0.025  # 7.9
    assert kstest(found.numpy(), "norm").statistic < 0.008  # chance below 1e-10


def test_uniform_numbers_fill_the_unit_interval() -> None:
    found = NoiseSource().uniform(100_000)
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    assert kstest(found.numpy(), "uniform").statistic < 0.012


def test_only_a_seeded_source_repeats_and_says_so() -> None:
    assert torch.equal(NoiseSource(5).normal(64), NoiseSource(5).normal(64))
    assert not torch.equal(NoiseSource(5).normal(64), NoiseSource(6).normal(64))
    assert not torch.equal(NoiseSource().normal(64), NoiseSource().normal(64))
    assert NoiseSource(5).seeded
    assert not NoiseSource().seeded


@pytest.mark.parametrize("count", [1, 7, 40_001, 700_001])
def test_noise_is_added_on_several_threads_as_on_one_and_to_the_last_number(count: int) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            values = torch.full((count,), 5.0)
            NoiseSource(1).add_to(values, 2.0)
            found.append(values)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert int((found[0] == 5).sum()) <= 3, "a chance of one in ten million for each number"
    if count > 10_000:
        assert kstest(((found[0] - 5) / 2).numpy(), "norm").statistic < 0.015  # chance below 1e-7
