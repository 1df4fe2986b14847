"""What every rule owes: the same bits in any order of replies, a result near the honest ones, nothing left on the disk."""

from __future__ import annotations

import contextlib
import random
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from cxrbase_model.aggregation import AngleMean, BoundedMean, GeometricMedian, Krum, Mean, Median, Rule, TrimmedMean
from cxrbase_model.state import State, digest
from server.rules.gathering import SPOOL, gathering
from server.rules.held import Held

RULES: list[Rule] = [
    Mean(), BoundedMean(bound=1.0), AngleMean(), Median(), TrimmedMean(), Krum(), Krum(selected=3), GeometricMedian(),
]  # fmt: skip
SHAPES = {"encoder.weight": (7, 3), "encoder.bias": (5,), "scale": (), "empty": (0, 4)}


def drawn(seed: int, spread: float = 1.0, centre: float = 0.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: centre + spread * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def aggregated(
    rule: Rule, updates: Mapping[str, State], folder: Path, usual: float | None = None, *, hold: bool = False, without: str = ""
) -> State:  # fmt: skip
    with gathering(rule, drawn(99), folder, usual, hold=hold) as gathered:
        for site, update in updates.items():
            assert gathered.fits(update, 1)
            gathered.fold(site, update, 10 + 7 * (ord(site) % 5))
        for site in without:
            assert isinstance(gathered, Held)
            gathered.leave_out(site)
        return gathered.result()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}")
def test_replies_in_any_order_give_the_same_bits(rule: Rule, tmp_path: Path) -> None:
    updates = {name: drawn(seed) for seed, name in enumerate("abcdefg")}
    digests = set()
    for seed in range(5):
        order = random.Random(seed).sample(sorted(updates), len(updates))
        digests.add(digest(aggregated(rule, {name: updates[name] for name in order}, tmp_path)))
    assert len(digests) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}")
def test_hospitals_that_agree_are_followed(rule: Rule, tmp_path: Path) -> None:
    update = drawn(3, spread=0.01)
    result = aggregated(rule, dict.fromkeys("abcdefg", update), tmp_path)
    assert result.keys() == update.keys()
    for name, tensor in update.items():
        assert result[name].dtype == torch.float32
        torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}")
def test_an_update_that_is_left_out_again_leaves_the_bits_of_a_round_without_it(rule: Rule, tmp_path: Path) -> None:
    updates = {name: drawn(seed) for seed, name in enumerate("gfedcba")}
    fewer = {name: update for name, update in updates.items() if name not in "cf"}
    held = aggregated(rule, updates, tmp_path, hold=True, without="cf")
    assert digest(held) == digest(aggregated(rule, fewer, tmp_path))
    assert not (tmp_path / SPOOL).exists()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}")
def test_an_attempt_that_ends_without_replies_leaves_nothing_behind(rule: Rule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no updates"), gathering(rule, drawn(99), tmp_path, None) as gathered:
        gathered.result()
    assert not (tmp_path / SPOOL).exists()


def test_what_a_killed_attempt_spooled_is_not_taken_for_an_update_of_this_one(tmp_path: Path) -> None:
    (tmp_path / SPOOL).mkdir()
    (tmp_path / SPOOL / "00000.f32").write_bytes(b"\0" * 4000)
    (tmp_path / SPOOL / "00009.f32").write_bytes(b"\0" * 4000)
    updates = dict.fromkeys("abc", drawn(3))
    torch.testing.assert_close(aggregated(Median(), updates, tmp_path)["scale"], drawn(3)["scale"])


def test_a_bound_is_taken_from_the_last_rounds_where_the_plan_names_none(tmp_path: Path) -> None:
    updates = {"a": {name: torch.full(shape, 3.0) for name, shape in SHAPES.items()}}
    length = 3.0 * 27**0.5
    unbounded = aggregated(BoundedMean(factor=2.0), updates, tmp_path)
    bounded = aggregated(BoundedMean(factor=2.0), updates, tmp_path, usual=1.5)
    torch.testing.assert_close(unbounded["scale"], torch.tensor(3.0))
    torch.testing.assert_close(bounded["scale"], torch.tensor(3.0 * 2.0 * 1.5 / length))


def test_in_a_stages_first_round_the_bound_is_the_median_norm_of_its_own_updates(tmp_path: Path) -> None:
    lengths = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 500.0}  # the lower of the two in the middle is 2
    updates = {
        site: {name: torch.full(shape, length / 27**0.5) for name, shape in SHAPES.items()} for site, length in lengths.items()
    }  # fmt: skip
    weights = {site: 10 + 7 * (ord(site) % 5) for site in updates}
    counted = {"a": 1.0, "b": 2.0, "c": 2.0, "d": 2.0}
    expected = sum(weights[site] * counted[site] for site in updates) / sum(weights.values())
    bounded = aggregated(BoundedMean(), updates, tmp_path)
    torch.testing.assert_close(bounded["scale"], torch.tensor(expected / 27**0.5))
    doubled = aggregated(BoundedMean(factor=2.0), updates, tmp_path)
    expected = sum(weights[site] * min(lengths[site], 4.0) for site in updates) / sum(weights.values())
    torch.testing.assert_close(doubled["scale"], torch.tensor(expected / 27**0.5))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writing beyond so many bytes of a file fail, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("rule", [Mean(), Median()], ids=lambda rule: f"{rule.kind}")
def test_a_disk_that_is_full_before_the_last_small_tensor_is_no_zero_in_the_model(rule: Rule, tmp_path: Path) -> None:
    with (
        gathering(rule, drawn(99), tmp_path, None) as gathered,
        largest_file(100),
        pytest.raises(OSError, match="too large"),
    ):
        gathered.fold("a", drawn(1), 1)
