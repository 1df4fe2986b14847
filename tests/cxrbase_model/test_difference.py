"""A difference gives back the very bits, whatever it is to, and is short where little has changed."""

from __future__ import annotations

import pytest
import torch

from cxrbase_model.bitplanes import bits
from cxrbase_model.codec import SCALE, CodecError, encode, pack, packed, unpack
from cxrbase_model.difference import (
    Pieces,
    decode_difference,
    encode_difference,
    gathered,
    narrow,
    scattered,
    widen,
)
from cxrbase_model.state import State, digest, size
from cxrbase_model.transport import PRECISIONS, Packing

MOST = 10**6


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": 0.02 * torch.randn(64, 96, generator=generator), "kernel": torch.randn(4, 3, 2, 2, generator=generator),
        "vector": torch.randn(7, generator=generator), "number": torch.tensor(-3.5), "zeros": torch.zeros(3, 4),
        "nothing": torch.zeros(0, 4), "large": torch.tensor([1e38, -1e38, 1e-40, -0.0, 0.0, 2.0]),
    }  # fmt: skip


def moved(by: float, seed: int = 1) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + by * 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in state().items()
    }


def pieces(of: State, precision: str) -> dict[str, Pieces]:
    return {name: narrow(tensor, precision) for name, tensor in of.items()}


def same(one: dict[str, Pieces], other: dict[str, Pieces]) -> bool:
    return one.keys() == other.keys() and all(
        first.shape == second.shape and first.dtype == second.dtype and bool((bits(first) == bits(second)).all())
        for name in one
        for first, second in zip(one[name], other[name], strict=True)
    )


@pytest.mark.parametrize("of_base", PRECISIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("by", [0.0, 1e-4, 0.1, 100.0])
def test_base_and_difference_give_the_very_bits(precision: str, of_base: str, by: float) -> None:
    base, new = pieces(state(), of_base), pieces(moved(by), precision)
    data = encode_difference(new.items(), base, precision)
    assert same(decode_difference(data, base, precision, MOST), new)
    assert data == encode_difference(new.items(), base, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_pattern_of_bits_comes_back(precision: str) -> None:
    width = {"float32": torch.int32, "bf16": torch.int16, "int8": torch.int8}[precision]
    kind = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(width)
    numbers = [
        torch.randint(limits.min, limits.max + 1, (256, 256), generator=generator).to(width).view(kind) for _ in "ab"
    ]
    scales = (torch.rand(256, generator=generator),) if precision == "int8" else ()
    base, new = ({"w": (number, *scales)} for number in numbers)
    assert same(decode_difference(encode_difference(new.items(), base, precision), base, precision, MOST), new)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_less_has_changed_the_shorter_it_is_and_never_much_longer_than_the_whole(precision: str) -> None:
    base = pieces(state(), precision)
    lengths = [
        len(encode_difference(pieces(moved(by), precision).items(), base, precision)) for by in (0.0, 0.001, 0.1, 100)
    ]
    whole = len(encode_difference(pieces(moved(100), precision).items(), {}, precision))
    assert lengths == sorted(lengths)
    assert lengths[0] < 0.25 * whole
    assert lengths[-1] < 1.02 * whole


def test_a_tensor_that_the_base_lacks_or_has_in_another_shape_travels_whole() -> None:
    base = pieces(state(), "bf16")
    new = pieces({"vector": torch.randn(9), "head": torch.randn(3, 3), "matrix": state()["matrix"]}, "bf16")
    assert same(decode_difference(encode_difference(new.items(), base, "bf16"), base, "bf16", MOST), new)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_pieces_of_what_was_packed_are_those_that_were_packed(precision: str) -> None:
    packing = Packing(precision, "zstd")
    found = packed(encode(state(), packing), packing, MOST)
    assert same(gathered(found), pieces(state(), precision))
    assert scattered(gathered(found)).keys() == found.keys()
    assert digest({name: widen(each) for name, each in gathered(found).items()}) == digest(
        {name: widen(narrow(tensor, precision)) for name, tensor in state().items()}
    )


def test_what_is_not_packed_so_is_refused() -> None:
    whole = scattered(pieces(state(), "int8"))
    less = {name: tensor for name, tensor in whole.items() if name != SCALE + "matrix"}
    for bad in (less, whole | {SCALE + "new": torch.zeros(1)}, whole | {SCALE + "matrix": torch.zeros(5)}, state()):
        with pytest.raises(CodecError):
            gathered(bad, ["int8"])
    assert same(gathered(whole), gathered(whole, ["int8"]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_that_are_no_difference_are_refused(precision: str) -> None:
    base = pieces(state(), precision)
    good = encode_difference(pieces(moved(0.1), precision).items(), base, precision)

    def spoiled(**changes: torch.Tensor) -> bytes:
        return pack(unpack(good) | {name.replace("__", ":"): tensor for name, tensor in changes.items()})

    less = {name: tensor for name, tensor in unpack(good).items() if name != "matrix"}
    bad = [
        b"", good[:-1], pack(less), pack(state()),
        spoiled(form__matrix=torch.tensor([1, 64, 95])), spoiled(form__matrix=torch.tensor([2, 64, 96])),
        spoiled(form__matrix=torch.tensor([1, -64, -96])), spoiled(form__matrix=torch.tensor([0, 2**40, 2**40])),
        spoiled(form__matrix=torch.tensor([1.0, 64.0, 96.0])), spoiled(form__new=torch.tensor([1, 2])),
        spoiled(matrix=torch.zeros(5, dtype=torch.uint8)), spoiled(matrix=torch.zeros(5)), spoiled(more=torch.zeros(1)),
        spoiled(**{f"{SCALE.replace(':', '__')}vector": torch.zeros(3, dtype=torch.uint8)}),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(CodecError):
            decode_difference(data, base, precision, MOST)
    with pytest.raises(CodecError):
        decode_difference(good, {}, precision, MOST)
    with pytest.raises(CodecError):
        decode_difference(good, base, precision, size(state()) - 1)
