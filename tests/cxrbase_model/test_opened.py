"""An int8 state that is read in place gives the numbers of one that is unpacked, and refuses what is none."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from cxrbase_model.codec import SCALE, CodecError, decode, encode, pack
from cxrbase_model.opened import Opened, opened
from cxrbase_model.state import State, digest, size
from cxrbase_model.transport import COMPRESSIONS, PRECISIONS, Packing

ALL = [Packing(*pair) for pair in itertools.product(PRECISIONS, COMPRESSIONS)]
INT8 = Packing("int8")


def drawn() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "long rows": torch.randn(3, 40_000, generator=generator), "many": torch.randn(5_000, 3, 17, generator=generator),
        "vector": torch.randn(70_000, generator=generator), "one": torch.tensor(0.3), "zero": torch.zeros(5, 2),
        "none": torch.zeros(0), "no.rows": torch.zeros(0, 4), "no.columns": torch.zeros(3, 0),
    }  # fmt: skip


@pytest.mark.parametrize("packing", ALL, ids=str)
def test_it_reads_as_the_decoded_one(packing: Packing) -> None:
    data = encode(drawn(), packing)
    read, whole = opened(data, packing, size(drawn())), decode(data, packing, size(drawn()))
    assert read.keys() == whole.keys()
    assert digest(read) == digest(whole)


def test_pieces_are_the_numbers_row_by_row() -> None:
    data = encode(drawn(), INT8)
    read = Opened(data)
    for name, tensor in decode(data, INT8, size(drawn())).items():
        pieces = [piece.clone() for piece in read.pieces(name)]
        assert torch.equal(torch.cat([torch.zeros(0), *pieces]), tensor.reshape(-1))
        assert read.shape(name) == tensor.shape


def test_scales_are_not_read_as_tensors() -> None:
    read = opened(encode({"w": torch.ones(2)}, INT8), INT8, 2)
    assert list(read) == ["w"]
    for ask in (read.__getitem__, *([read.pieces, read.shape] if isinstance(read, Opened) else [])):
        with pytest.raises(KeyError):
            ask(SCALE + "w")


def test_scales_that_are_not_finite_make_numbers_that_are_not_and_no_warning() -> None:
    steps, scale = torch.tensor([[0, 1], [1, 2]], dtype=torch.int8), torch.tensor([float("inf"), float("nan")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Opened(pack({"w": steps, SCALE + "w": scale}))["w"]
    assert not read.isfinite().any()


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": torch.ones(2, dtype=torch.int8)},
        {"w": torch.ones(2, dtype=torch.int8), SCALE + "w": torch.ones(2)},
        {"w": torch.ones(2, dtype=torch.int8), SCALE + "w": torch.ones(1).double()},
        {"w": torch.ones(2), SCALE + "w": torch.ones(1)},
        {"w": torch.ones(2, dtype=torch.int8), SCALE + "w": torch.ones(1), SCALE + "v": torch.ones(1)},
    ],
    ids=["no scale", "too many scales", "another precision", "no steps", "a scale of nothing"],
)
def test_tensors_that_are_no_int8_state_are_refused(tensors: State) -> None:
    with pytest.raises(CodecError):
        opened(pack(tensors), INT8, 100)


def test_bytes_that_are_cut_short_or_nested_without_end_are_refused() -> None:
    data = encode({"w": torch.ones(2, 3)}, INT8)
    deep = b'{"w": ' + b"[" * 100_000
    for wrong in (*(data[:end] for end in range(len(data))), len(deep).to_bytes(8, "little") + deep):
        with pytest.raises(CodecError):
            opened(wrong, INT8, 100)
