"""The weighted mean against a slow one, and its independence of the order of replies."""

from __future__ import annotations

import itertools

import pytest
import torch

from server.aggregate import WeightedMean


def updates() -> list[tuple[dict[str, torch.Tensor], int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        ({"w": torch.randn(5, 4, generator=generator) * 10.0**-k}, weight) for k, weight in enumerate((3, 501, 77, 1))
    ]


def mean_of(pairs: list[tuple[dict[str, torch.Tensor], int]]) -> torch.Tensor:
    mean = WeightedMean({"w": torch.zeros(5, 4)})
    for update, weight in pairs:
        mean.fold(update, weight)
    return mean.result()["w"]


def test_it_equals_the_mean_summed_one_number_at_a_time() -> None:
    pairs = updates()
    total = sum(weight for _, weight in pairs)
    slow = torch.tensor(
        [[sum(float(u["w"][i, j]) * weight for u, weight in pairs) / total for j in range(4)] for i in range(5)]
    )
    torch.testing.assert_close(mean_of(pairs), slow, rtol=1e-6, atol=1e-10)


def test_any_order_of_replies_gives_the_same_bits() -> None:
    results = [mean_of(list(order)) for order in itertools.permutations(updates())]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_one_update_comes_back_unchanged() -> None:
    update, _ = updates()[0]
    torch.testing.assert_close(mean_of([(update, 7)]), update["w"], rtol=1e-7, atol=1e-10)


def test_an_update_beyond_the_range_is_refused_and_leaves_the_sum_alone() -> None:
    mean = WeightedMean({"w": torch.zeros(2)})
    mean.fold({"w": torch.ones(2)}, 1)
    with pytest.raises(ValueError, match="range"):
        mean.fold({"w": torch.tensor([1e9, 0.0])}, 1000)
    assert torch.equal(mean.result()["w"], torch.ones(2))


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_that_is_not_positive_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="weight"):
        WeightedMean({"w": torch.zeros(2)}).fold({"w": torch.ones(2)}, weight)


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no updates"):
        WeightedMean({"w": torch.zeros(2)}).result()
