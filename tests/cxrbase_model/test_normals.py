"""Privacy noise is normal, new each time, and repeats only where it was seeded."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy.stats import kstest

from cxrbase_model.normals import NoiseSource, _box_muller


def keystream(seed: int, words: int) -> NDArray[np.int64]:
    """What a seeded source has to draw, by one call of the library: 53 bits of each word of AES-256-CTR."""
    key = hashlib.sha256(f"noise {seed}".encode()).digest()
    drawn = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * words))
    return np.frombuffer(drawn, dtype="<i8") & (2**53 - 1)


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


def test_noise_is_box_and_mullers_of_the_keystream() -> None:
    """A slow independent version, with cosine and sine themselves; the parts are of 2**15 numbers, halves radius and angle."""
    count = 40_001
    words = keystream(7, count + 1) / 2**53
    expected = []
    for part in (words[: 1 << 15], words[1 << 15 :]):
        radius, angle = np.split(part, 2)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * math.pi * angle
        expected += [radius * np.cos(angle), radius * np.sin(angle)]
    values = torch.zeros(count, dtype=torch.float64)
    NoiseSource(7).add_to(values, 1.0)
    apart = (values.numpy() - np.concatenate(expected)[:count]) * 2**20
    assert np.abs(apart).max() <= 0.5 + 1e-6, "half a step of the grid, and what float64 rounds"


def test_no_part_of_the_keystream_is_used_twice() -> None:
    source, place, words = NoiseSource(7), 0, keystream(7, 120_000)
    for count in (1, 2, 3, 40_001, 7):
        drawn = source.uniform(count).numpy()
        assert np.array_equal(drawn, words[place : place + count] / 2**53)
        source.seed()
        source.add_to(torch.zeros(count), 1.0)
        place += 2 * (count + count % 2) + 2  # whole blocks of two words


def test_a_source_is_not_copied_which_would_draw_the_same_noise_again() -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="drawn twice"):
            copied(NoiseSource())


def test_the_largest_and_the_smallest_draws_are_numbers() -> None:
    largest = 2**53 - 1
    radii, angles = [0, 1, largest, largest, largest], [0, 1, 2**51, 2**52, largest]
    numbers = np.array(radii + angles, dtype=np.float64)
    with np.errstate(all="raise", under="ignore"):
        _box_muller(numbers, np.empty(5))
    longest = math.sqrt(-2 * math.log(2.0**-53))
    expected = [0, math.sqrt(2.0**-52), 0, -longest, longest, 0, 0, longest, 0, 0]
    np.testing.assert_allclose(numbers, expected, atol=1e-7)
    assert numbers[1] == pytest.approx(math.sqrt(2.0**-52), rel=1e-9)


def test_what_is_divided_was_rounded_to_the_grid_before() -> None:
    whole, parted = (torch.linspace(-3, 3, 999, dtype=torch.float64) for _ in range(2))
    NoiseSource(2).add_to(whole, 0.7)
    NoiseSource(2).add_to(parted, 0.7, 12)
    torch.testing.assert_close(12 * parted, whole, rtol=1e-15, atol=0)
    assert torch.equal((12 * parted * 2**21).round(), whole * 2**21)
