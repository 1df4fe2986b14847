"""The weighted mean against a slow one, and its independence of the order of replies."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cxrbase_model.codec import encode
from cxrbase_model.opened import opened
from cxrbase_model.transport import Packing
from server.aggregate import WeightedMean


@pytest.fixture
def mean(tmp_path: Path) -> Iterator[WeightedMean]:
    with WeightedMean({"w": torch.zeros(2)}, tmp_path / "sums") as opened:
        yield opened


def updates() -> list[tuple[dict[str, torch.Tensor], int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        ({"w": torch.randn(5, 4, generator=generator) * 10.0**-k}, weight) for k, weight in enumerate((3, 501, 77, 1))
    ]


def mean_of(pairs: list[tuple[dict[str, torch.Tensor], int]]) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder, WeightedMean({"w": torch.zeros(5, 4)}, Path(folder) / "sums") as mean:
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


def test_an_update_beyond_the_range_is_refused_and_leaves_the_sum_alone(mean: WeightedMean) -> None:
    mean.fold({"w": torch.ones(2)}, 1)
    with pytest.raises(ValueError, match="range"):
        mean.fold({"w": torch.tensor([1e9, 0.0])}, 1000)
    assert torch.equal(mean.result()["w"], torch.ones(2))


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_that_is_not_positive_is_refused(mean: WeightedMean, weight: int) -> None:
    with pytest.raises(ValueError, match="weight"):
        mean.fold({"w": torch.ones(2)}, weight)


def test_the_mean_of_nothing_is_an_error(mean: WeightedMean) -> None:
    with pytest.raises(ValueError, match="no updates"):
        mean.result()


def test_tensors_longer_than_a_piece_and_empty_ones_come_back_whole(tmp_path: Path) -> None:
    state = {
        "long": torch.arange((1 << 18) + 3, dtype=torch.float32),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(7.0),
    }
    with WeightedMean(state, tmp_path / "sums") as mean:
        mean.fold(state, 1)
        mean.fold({name: 3 * tensor for name, tensor in state.items()}, 1)
        result = mean.result()
    assert {name: tensor.shape for name, tensor in result.items()} == {name: each.shape for name, each in state.items()}
    assert all(torch.equal(result[name], 2 * state[name]) for name in state)


def test_sums_that_a_killed_attempt_left_do_not_count_and_none_are_left_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "sums.i64").write_bytes(b"\x7f" * 16)
    with WeightedMean({"w": torch.zeros(2)}, folder) as mean:
        mean.fold({"w": torch.ones(2)}, 1)
        assert torch.equal(mean.result()["w"], torch.ones(2))
    assert not folder.exists()


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_whether_an_int8_update_fits_is_told_by_its_scales(tmp_path: Path, size: float) -> None:
    update = {"w": torch.tensor([[0.5, -1.0], [0.25, 0.0]]) * size}
    packing = Packing("int8", "zstd")
    with WeightedMean(update, tmp_path / "sums") as mean:
        assert mean.fits(opened(encode(update, packing), packing, 4), 10) == mean.fits(update, 10) == (size == 1.0)


@pytest.mark.parametrize(("examples", "largest"), [(1, 1_073_000.0), (100_000, 10.7), (10_000_000, 0.107)])
def test_a_number_times_its_weight_may_be_about_a_million(tmp_path: Path, examples: int, largest: float) -> None:
    with WeightedMean({"w": torch.zeros(2)}, tmp_path / "sums") as mean:
        assert mean.fits({"w": torch.tensor([largest, 0.0])}, examples)
        assert not mean.fits({"w": torch.tensor([1.01 * largest, 0.0])}, examples)
