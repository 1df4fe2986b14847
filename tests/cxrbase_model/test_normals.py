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
