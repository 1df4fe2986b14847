"""The largest numbers of each tensor alone: by hand, bounded, and with nothing lost for good."""

from __future__ import annotations

import math

import pytest
import torch

from cxrbase_model.codec import CodecError, decode, encode, pack, sent
from cxrbase_model.sparse import dense, thin, thinned
from cxrbase_model.state import State, digest, size
from cxrbase_model.transport import Packing, Transport

HALF = Packing("topk", "none", 0.5)


def test_the_largest_two_of_four_stay_and_steps_count_from_before_the_first() -> None:
    packed = thin({"w": torch.tensor([[0.5, -4.0], [0.25, 2.0]])}, 0.5)
    assert packed["w"].tolist() == [-4.0, 2.0]
    assert packed["gap:w"].tolist() == [2, 2]
    assert packed["shape:w"].tolist() == [2, 2]
    assert dense(packed, 4)["w"].tolist() == [[0.0, -4.0], [0.0, 2.0]]


def test_a_step_too_long_for_sixteen_bits_is_cut_by_zeros() -> None:
    state = {"w": torch.zeros(200_000)}
    state["w"][65_534], state["w"][199_999] = 3.0, -1.0  # steps of 65,535 and of 134,465 = 2 x 65,535 + 3,395
    packed = thin(state, 2 / 200_000)
    assert packed["w"].tolist() == [3.0, 0.0, 0.0, -1.0]
    assert [step % 65_536 for step in packed["gap:w"].tolist()] == [65_535, 65_535, 65_535, 3_395]
    assert torch.equal(dense(packed, 200_000)["w"], state["w"])


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_what_arrives_is_what_the_hospital_reckons_with(compress: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 3, 7), (11,), (), (0, 4)]
    state = {f"t{index}": torch.randn(shape, generator=generator) for index, shape in enumerate(shapes)}
    packing = Packing("topk", compress, 0.1)
    data, kept = sent(state, packing)
    back = decode(data, packing, size(state))
    assert digest(back) == digest(kept)
    assert {name: each.shape for name, each in back.items()} == {name: each.shape for name, each in state.items()}
    assert [int(back[name].count_nonzero()) for name in sorted(back)] == [84, 2, 1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_among_the_largest(value: float) -> None:
    back = thinned(torch.tensor([5.0, value, 7.0, 9.0]), 0.25)
    assert not bool(torch.isfinite(back).all())


def broken() -> dict[str, State]:
    whole = thin({"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}, 0.5)
    return {
        "no gaps": {name: each for name, each in whole.items() if not name.startswith("gap")},
        "no shape": {name: each for name, each in whole.items() if not name.startswith("shape")},
        "a shape for nothing": {**whole, "shape:x": torch.tensor([1])},
        "a place beyond": {**whole, "gap:w": torch.tensor([3, 2], dtype=torch.int16)},
        "a place twice": {**whole, "gap:w": torch.tensor([1, 0], dtype=torch.int16)},
        "more steps": {**whole, "gap:w": torch.ones(3, dtype=torch.int16)},
        "numbers of another type": {**whole, "w": torch.ones(2)},
        "a negative shape": {**whole, "shape:w": torch.tensor([-4])},
        "two negative sizes": {**whole, "shape:w": torch.tensor([-2, -2])},
        "a shape of another type": {**whole, "shape:w": torch.tensor([4], dtype=torch.int16)},
        "a huge shape": {**whole, "shape:w": torch.tensor([1 << 40])},
        "a shape that overflows": {**whole, "shape:w": torch.tensor([1 << 32, 1 << 32])},
    }


@pytest.mark.parametrize("case", sorted(broken()))
def test_what_is_not_an_update_is_refused_before_memory_is_taken(case: str) -> None:
    with pytest.raises(CodecError, match="expected"):
        decode(pack(broken()[case]), HALF, 1000)


def test_five_in_a_hundred_numbers_take_less_than_a_twentieth_of_the_bytes() -> None:
    state = {"w": torch.randn(512, 768, generator=torch.Generator().manual_seed(1)) * 0.02}
    assert len(encode(state, Transport(update="topk", compress="zstd").up)) < 0.05 * 4 * size(state)


def test_updates_may_be_compressed_otherwise_than_broadcasts() -> None:
    both = Transport(broadcast="bf16", update="int8", compress="zstd")
    assert (both.up, both.down("pretrain")) == (Packing("int8", "zstd"), Packing("bf16", "zstd"))
    one = Transport(broadcast="bf16", update="int8", compress="zstd", compress_update="none")
    assert (one.up, one.down("pretrain")) == (Packing("int8", "none"), Packing("bf16", "zstd"))
