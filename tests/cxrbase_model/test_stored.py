"""Files of tensors: what was written is read, and anything else is named so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cxrbase_model.codec import CodecError, pack
from cxrbase_model.state import State
from cxrbase_model.stored import load


def state() -> State:
    return {
        "weight": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "steps": torch.arange(6, dtype=torch.int8).reshape(2, 3),
        "one": torch.tensor(0.5), "none": torch.zeros(0, 4),
    }  # fmt: skip


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = state()
    (tmp_path / "file").write_bytes(pack(written))
    read = load(tmp_path / "file")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name], tensor)


def test_a_file_that_lacks_any_of_its_bytes_is_refused(tmp_path: Path) -> None:
    data = pack(state())
    for size in (*range(0, len(data), 7), len(data) - 1):
        (tmp_path / "file").write_bytes(data[:size])
        with pytest.raises(CodecError, match=f"found {size} bytes of something else"):
            load(tmp_path / "file")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"1",
        b'{"w": 1}',
        b'{"w": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"w": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b"\xff",
    ],
)
def test_a_header_that_says_something_else_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CodecError):
        load(tmp_path / "file")
