"""Update arithmetic against hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cxrbase_model.codec import CodecError, pack, unpack
from cxrbase_model.seeds import derive_seed, generator
from cxrbase_model.state import State, add, byte_size, digest, is_finite, load_state, mismatch, norm, state_of, subtract


def small_state(value: float = 1.0) -> State:
    return {"encoder.weight": torch.full((2, 3), value), "head.bias": torch.tensor([value, -value])}


def test_local_is_global_plus_the_update() -> None:
    before, after = small_state(1.0), small_state(1.75)
    update = subtract(after, before)
    assert torch.equal(update["encoder.weight"], torch.full((2, 3), 0.75))
    assert all(torch.equal(tensor, after[name]) for name, tensor in add(before, update).items())


def test_the_norm_is_taken_over_all_tensors() -> None:
    assert norm(small_state(2.0)) == pytest.approx(math.sqrt(8 * 4.0))
    assert byte_size(small_state()) == 8 * 4


def test_one_number_that_is_not_finite_is_found() -> None:
    state = small_state()
    assert is_finite(state)
    state["head.bias"][1] = float("inf")
    assert not is_finite(state)


def test_a_mismatch_says_whether_names_or_shapes_differ() -> None:
    state = small_state()
    assert mismatch(state, small_state(3.0)) is None
    assert mismatch({"encoder.weight": state["encoder.weight"]}, state) == "names"
    assert mismatch({**state, "head.bias": torch.zeros(3)}, state) == "shapes"


def test_the_digest_sees_names_shapes_and_values_but_not_the_order() -> None:
    state = small_state()
    assert digest(dict(reversed(state.items()))) == digest(state)
    reshaped = {**state, "encoder.weight": state["encoder.weight"].reshape(3, 2)}
    renamed = {"encoder.other": state["encoder.weight"], "head.bias": state["head.bias"]}
    nudged = {**state, "head.bias": state["head.bias"] + 1e-7}
    assert len({digest(s) for s in (state, reshaped, renamed, nudged)}) == 4


def test_a_module_takes_back_what_it_gave_and_refuses_another_shape() -> None:
    module = nn.Linear(3, 2)
    state = state_of(module)
    nn.init.zeros_(module.weight)
    load_state(module, state)
    assert torch.equal(module.weight, state["weight"])
    state["weight"].add_(1)
    assert not torch.equal(module.weight, state["weight"]), "a state is a copy"
    with pytest.raises(ValueError, match="shapes"):
        load_state(module, {**state, "bias": torch.zeros(3)})


def test_packing_is_exact_and_the_same_each_time() -> None:
    state = {name: torch.randn(tensor.shape) for name, tensor in small_state().items()}
    data = pack(state)
    assert data == pack(dict(reversed(state.items())))
    assert digest(unpack(data)) == digest(state)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 64])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        unpack(data)


def test_seeds_differ_by_purpose_round_and_site_and_repeat() -> None:
    seeds = {derive_seed(1, "train", 1, "a"), derive_seed(1, "train", 1, "b"), derive_seed(1, "mask", 1, "a")}
    seeds |= {derive_seed(2, "train", 1, "a"), derive_seed(1, "train", 11, "a"), derive_seed(1, "train", 1, "1a")}
    assert len(seeds) == 6
    assert torch.equal(torch.rand(3, generator=generator(1, "x", 2)), torch.rand(3, generator=generator(1, "x", 2)))
