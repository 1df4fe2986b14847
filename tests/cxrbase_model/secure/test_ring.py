"""Sums in the ring are exact, and numbers are wrong by what is stated at most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cxrbase_model.plan import Plan
from cxrbase_model.secure.ring import LOSS_SPAN, Ring, RingError, Rings, rings_of
from cxrbase_model.settings import read, to_mapping
from tests.server.hospitals import short_plan


def rings(bits: int = 32, span: float = 1.0, parties: int = 50) -> Rings:
    return Rings(Ring(32, 1.0, parties), Ring(bits, span, parties))


def update(seed: int, span: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (300, 700), "a": (), "c": (0,), "d": (5,)}
    return {name: (2 * torch.rand(shape, generator=generator) - 1) * span for name, shape in shapes.items()}


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("span", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("hospitals", [3, 50])
def test_the_mean_is_wrong_by_no_more_than_stated(bits: int, span: float, hospitals: int) -> None:
    ring = rings(bits, span)
    count = sum(each.numel() for each in update(0).values())
    total = ring.zeros(count)
    weights = [1 - 0.9 * number / hospitals for number in range(hospitals)]
    updates = [update(number, span) for number in range(hospitals)]
    for share, each in zip(weights, updates, strict=True):
        total.add(ring.vector(ring.encode(each, share, 0.5), count))
    share, loss, short = ring.totals(total)
    assert share == pytest.approx(sum(weights), abs=hospitals / ring.tail.scale)
    assert loss == pytest.approx(0.5, abs=1e-5)
    assert short == 0
    mean = ring.mean(total, updates[0], share, share)
    stated = hospitals / (2 * ring.body.scale * sum(weights)) * (1 + 1e-5)
    assert hospitals / (2 * ring.body.scale) <= hospitals * span * 50 / (2**bits - 2 - 2 * 50)
    for name in mean:
        exact = sum(w * each[name].double() for w, each in zip(weights, updates, strict=True)) / sum(weights)
        assert mean[name].shape == updates[0][name].shape
        rounding = 2.0**-24 * span  # of float32
        assert not mean[name].numel() or float((mean[name].double() - exact).abs().max()) <= stated + 2 * rounding


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_does_not_wrap(bits: int, sign: int) -> None:
    ring = Ring(bits, 0.3, 50)
    residues = ring.encode(np.full(4, sign * 0.3, np.float64))
    total = sum([residues] * 50, np.zeros(4, ring.dtype))
    assert total.dtype == ring.dtype
    assert ring.decode(total) == pytest.approx(sign * 15.0, rel=1e-2 if bits == 16 else 1e-6)


@pytest.mark.parametrize("number", [1.0001, -1.0001, np.inf, -np.inf, np.nan])
def test_a_number_beyond_the_span_is_refused(number: float) -> None:
    numbers = np.zeros(300_000, np.float32)
    numbers[-7] = number
    with pytest.raises(RingError, match="expected numbers of magnitude at most 1, found"):
        Ring(32, 1.0, 3).encode(numbers)


def test_a_weight_does_not_hide_a_number_beyond_the_span() -> None:
    with pytest.raises(RingError, match="found 2"):
        rings().encode({"a": torch.tensor([2.0])}, 0.1, 0.0)


def test_a_loss_counts_as_one_that_fits() -> None:
    ring = rings()
    assert ring.totals(ring.vector(ring.encode({"a": torch.zeros(1)}, 0.5, 1e9), 1))[1] == pytest.approx(
        LOSS_SPAN, rel=1e-6
    )
    assert ring.totals(ring.vector(ring.encode({"a": torch.zeros(1)}, 0.5, -1.25), 1))[1] == pytest.approx(
        -1.25, rel=1e-6
    )


@pytest.mark.parametrize("bits", [16, 32])
def test_a_vector_travels_whole_or_not_at_all(bits: int) -> None:
    ring = rings(bits)
    data = bytes(ring.encode(update(3), 1.0, 0.25, 1.0))
    count = sum(each.numel() for each in update(3).values())
    assert len(data) == ring.size(count) == 12 + count * bits // 8
    numbers = np.concatenate([update(3)[name].flatten() for name in "abcd"])
    assert np.array_equal(ring.vector(data, count).body, ring.body.encode(numbers))
    assert ring.totals(ring.vector(data, count)) == pytest.approx((1.0, 0.25, 1.0))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(RingError, match=f"expected {len(data)} bytes, found {len(wrong)}"):
            ring.vector(wrong, count)


def test_a_sum_that_no_updates_have_is_noticed() -> None:
    ring = rings()
    rng = np.random.default_rng(0)
    total = ring.zeros(10_000)
    total.body[:] = rng.integers(0, 2**32, 10_000, dtype=np.uint32)
    with pytest.raises(RingError, match="sum: expected at most 3"):
        ring.mean(total, {"a": torch.zeros(10_000)}, 3.0, 3.0)


def test_under_privacy_the_span_follows_from_clip_and_noise() -> None:
    secure = {"threshold": 2, "span": 5.0}
    plain = planned({"secure": secure})
    assert rings_of(plain, None).body.span == 5.0
    private = planned({"secure": secure, "privacy": {"clip": 0.5, "noise_multiplier": 2.0, "noise": "hospitals"}})
    assert rings_of(private, 0.5).body.span == pytest.approx(0.5 * (1 + 9 * 2.0 / np.sqrt(2)))
    trusting = planned({"secure": secure, "privacy": {"clip": 0.5, "noise_multiplier": 2.0}})
    assert rings_of(trusting, 0.5).body.span == 0.5


def test_a_plan_without_the_section_has_no_rings() -> None:
    with pytest.raises(ValueError, match=r"aggregation\.secure: expected it to be set"):
        rings_of(short_plan(), None)


def planned(aggregation: dict[str, Any]) -> Plan:
    whole = to_mapping(short_plan(quorum=3, weighting="uniform"))
    return read(Plan, whole | {"aggregation": aggregation})
