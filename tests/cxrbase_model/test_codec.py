"""The wire's packings: how far each is from the numbers, how many bytes it takes, and what is refused."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import safetensors.torch
import torch

from cxrbase_model.codec import CodecError, decode, encode, encode_and_leave, pack, sent
from cxrbase_model.state import State, digest, size
from cxrbase_model.transport import COMPRESSIONS, EXACT, PRECISIONS, Packing

ALL = [Packing(*pair) for pair in itertools.product(PRECISIONS, COMPRESSIONS)]


def drawn(seed: int = 0, rows: int = 64) -> State:
    """Weights with rows of very different size, as a model has them, and shapes that are easily forgotten."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 3, 17, generator=generator) * torch.logspace(-4, 0, rows)[:, None, None]
    bias = torch.randn(rows + 1, generator=generator)
    shapes = {
        "odd": torch.tensor(0.3),
        "none": torch.zeros(0),
        "no.rows": torch.zeros(0, 4),
        "no.columns": torch.zeros(3, 0),
    }
    return {"weight": weight, "bias": bias, "zero": torch.zeros(5, 2), **shapes}


def there_and_back(state: State, packing: Packing) -> State:
    return decode(encode(state, packing), packing, size(state))


@pytest.mark.parametrize("packing", ALL, ids=str)
def test_names_shapes_and_type_come_back_and_zeros_stay_zeros(packing: Packing) -> None:
    state = drawn()
    back = there_and_back(state, packing)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in back.items()} == {
        name: (tensor.shape, torch.float32) for name, tensor in state.items()
    }
    assert not back["zero"].any()


@pytest.mark.parametrize("packing", ALL, ids=str)
def test_no_number_is_further_off_than_its_packing_allows(packing: Packing) -> None:
    state = drawn()
    back = there_and_back(state, packing)
    rows = state["weight"].flatten(1)
    off = (back["weight"].flatten(1) - rows).abs()
    allowed = {
        "float32": torch.zeros_like(rows),
        "bf16": rows.abs() * 2.0**-8,
        "int8": (rows.abs().amax(dim=1, keepdim=True) / 254 * 1.001).expand_as(rows),
    }
    assert bool((off <= allowed[packing.precision]).all())


@pytest.mark.parametrize("packing", ALL, ids=str)
def test_what_everybody_gets_is_what_the_sender_keeps_and_is_the_same_each_time(packing: Packing) -> None:
    state = drawn()
    data, kept = sent(state, packing)
    assert digest(decode(data, packing, size(state))) == digest(kept)
    assert data == encode(dict(reversed(state.items())), packing)


@pytest.mark.parametrize("packing", [each for each in ALL if not each.is_exact], ids=str)
def test_what_the_bytes_leave_out_stays_with_the_sender(packing: Packing) -> None:
    state = drawn()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    data = encode_and_leave(kept, packing)
    assert data == encode(state, packing)
    arrived = decode(data, packing, size(state))
    assert all(torch.equal(kept[name], tensor - arrived[name]) for name, tensor in state.items())
    assert bool(kept["weight"].any())


def test_packed_bytes_are_those_of_safetensors_itself() -> None:
    state = {**drawn(), "steps": torch.ones(3, 5, dtype=torch.int8), "halves": torch.ones(7, dtype=torch.bfloat16)}
    assert pack(state) == safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})


def test_the_exact_packing_is_that_of_the_disk() -> None:
    assert encode(drawn(), EXACT) == pack(drawn())


@pytest.mark.parametrize(
    ("packing", "most"),
    [
        (Packing("bf16", "zstd"), 0.375),
        (Packing("int8", "none"), 0.26),
        (Packing("int8", "zstd"), 0.24),
        (Packing("float32", "zstd"), 0.9),
    ],
    ids=str,
)
def test_weights_take_a_fraction_of_the_bytes(packing: Packing, most: float) -> None:
    state = {"weight": torch.randn(512, 768, generator=torch.Generator().manual_seed(1)) * 0.02}
    assert len(encode(state, packing)) < most * 4 * size(state)


@pytest.mark.parametrize("packing", ALL, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_does_not_become_one(packing: Packing, value: float) -> None:
    back = there_and_back({"weight": torch.tensor([[1.0, value], [2.0, 3.0]])}, packing)
    assert not bool(torch.isfinite(back["weight"][0]).all())
    assert bool(torch.isfinite(back["weight"][1]).all())


@pytest.mark.parametrize("packing", [each for each in ALL if each != EXACT], ids=str)
def test_bytes_of_another_packing_or_cut_short_are_refused(packing: Packing) -> None:
    whole = encode(drawn(), packing)
    wrong = [whole[:-1], whole[:7], b"", b"\0" * 64]
    wrong += [encode(drawn(), other) for other in ALL if other.compress != packing.compress]
    for data in wrong:
        with pytest.raises(CodecError):
            decode(data, packing, 10**6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_float32_is_not_taken_for_a_coarser_packing(precision: str) -> None:
    with pytest.raises(CodecError, match="expected"):
        decode(encode(drawn(), EXACT), Packing(precision), 10**6)


def test_scales_must_fit_their_tensors() -> None:
    steps, scale = torch.ones(2, 3, dtype=torch.int8), torch.ones(2)
    whole = {"w": steps, "scale:w": scale}
    for broken in (
        {"w": steps},
        {**whole, "scale:w": torch.ones(3)},
        {**whole, "scale:x": torch.ones(2)},
        {**whole, "w": steps.short()},
    ):
        with pytest.raises(CodecError, match="expected"):
            decode(pack(broken), Packing("int8"), 10)


def test_a_few_bytes_that_claim_to_become_many_take_no_memory() -> None:
    bomb = encode({"w": torch.zeros(8 << 20)}, Packing("float32", "zstd"))
    assert len(bomb) < 10_000
    with pytest.raises(CodecError, match="at most"):
        decode(bomb, Packing("float32", "zstd"), 1000)
    understated = struct.pack("<Q", 1000) + bomb[8:]
    with pytest.raises(CodecError, match="zstd"):
        decode(understated, Packing("float32", "zstd"), 1000)
