"""The streamed rules on cases computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.aggregate import WeightedMean
from server.rules.linear import AngleWeighted, Bounded

Sums = Callable[[dict[str, Tensor]], WeightedMean]


@pytest.fixture
def sums(tmp_path: Path) -> Iterator[Sums]:
    """Opens the sums of a state, each in a folder of its own."""
    with ExitStack() as stack:
        yield lambda state: stack.enter_context(WeightedMean(state, tmp_path / f"{len(list(tmp_path.iterdir()))}"))


def test_an_update_beyond_the_bound_counts_with_the_bounds_length_and_the_others_whole(sums: Sums) -> None:
    mean = Bounded(sums({"w": torch.zeros(2)}), bound=1.0)
    mean.fold("loud", {"w": torch.tensor([300.0, 400.0])}, 1)
    mean.fold("quiet", {"w": torch.tensor([0.2, -0.4])}, 3)
    torch.testing.assert_close(mean.result()["w"], torch.tensor([0.6 + 0.6, 0.8 - 1.2]) / 4)


def test_an_update_that_fits_once_it_is_scaled_down_is_taken(sums: Sums) -> None:
    huge = {"w": torch.tensor([1e30, 0.0])}
    assert not Bounded(sums({"w": torch.zeros(2)}), bound=None).fits(huge, 10)
    assert Bounded(sums({"w": torch.zeros(2)}), bound=1.0).fits(huge, 10)


def test_a_layer_counts_by_the_cosine_of_its_weights_to_the_global_ones(sums: Sums) -> None:
    state = {"turned": torch.tensor([1.0, 0.0]), "kept": torch.tensor([2.0, 0.0])}
    mean = AngleWeighted(sums(state), state)
    mean.fold("a", {"turned": torch.tensor([0.0, 0.0]), "kept": torch.tensor([1.0, 0.0])}, 1)
    mean.fold("b", {"turned": torch.tensor([0.0, 1.0]), "kept": torch.tensor([3.0, 0.0])}, 2)
    cosine = math.cos(math.pi / 4)  # b's layer points to [1, 1]
    expected = 2 * cosine / (1 + 2 * cosine)
    torch.testing.assert_close(mean.result()["turned"], torch.tensor([0.0, expected]))
    torch.testing.assert_close(mean.result()["kept"], torch.tensor([7 / 3, 0.0]))


def test_a_layer_that_all_have_turned_away_from_stays_where_it_was(sums: Sums) -> None:
    state = {"w": torch.tensor([1.0, 0.0])}
    mean = AngleWeighted(sums(state), state)
    mean.fold("a", {"w": torch.tensor([-3.0, 0.0])}, 5)
    assert torch.equal(mean.result()["w"], torch.zeros(2))


def test_a_layer_of_zeros_has_no_direction_and_counts_whole(sums: Sums) -> None:
    state = {"bias": torch.zeros(2)}
    mean = AngleWeighted(sums(state), state)
    mean.fold("a", {"bias": torch.tensor([1.0, 2.0])}, 5)
    mean.fold("b", {"bias": torch.tensor([3.0, 2.0])}, 5)
    torch.testing.assert_close(mean.result()["bias"], torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("bound", [0.5, None])
def test_without_anything_too_long_a_bound_changes_nothing(sums: Sums, bound: float | None) -> None:
    mean = Bounded(sums({"w": torch.zeros(2)}), bound)
    mean.fold("a", {"w": torch.tensor([0.1, 0.2])}, 1)
    assert torch.equal(mean.result()["w"], torch.tensor([0.1, 0.2]))
