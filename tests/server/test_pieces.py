"""Replies in pieces are joined to the same bytes as Flower joins them, in less memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from server.pieces import join_in_place

_MEMORY = """
import os, tracemalloc
from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from server.pieces import join_in_place
join_in_place()
array = Array("uint8", (40_000_000,), "test", os.urandom(40_000_000))
contents = {name: each.deflate() for name, each in get_all_nested_objects(array).items()}
name = array.object_id
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
array.data = b""
del array
tracemalloc.reset_peak()
joined = inflate_object_from_contents(name, contents)
print(tracemalloc.get_traced_memory()[1] / 40_000_000, len(joined.data))
"""


@pytest.fixture(autouse=True)
def joining() -> None:
    join_in_place()


def through_pieces(data: bytes) -> bytes:
    array = Array("uint8", (len(data),), "test", data)
    contents = {name: each.deflate() for name, each in get_all_nested_objects(array).items()}
    joined = inflate_object_from_contents(array.object_id, contents)
    assert isinstance(joined, Array)
    assert joined.object_id == array.object_id
    return joined.data


@pytest.mark.parametrize(
    "data",
    [b"", b"few", bytes(range(256)) * 50_000, bytes(12_000_001)],
    ids=["none", "one piece", "several", "pieces that are alike"],
)
def test_joined_pieces_are_the_bytes_that_were_cut(data: bytes) -> None:
    assert through_pieces(data) == data


def test_an_array_that_lacks_a_piece_is_refused_as_before() -> None:
    array = Array("uint8", (12_000_000,), "test", bytes(range(250)) * 48_000)
    pieces = dict(array.slice_array())
    pieces.popitem()
    with pytest.raises(ValueError, match="children"):
        Array.inflate(array.deflate(), children=pieces)


def test_joining_takes_little_more_memory_than_the_pieces() -> None:
    told = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True).stdout.split()
    assert int(told[1]) == 40_000_000
    assert float(told[0]) < 1.5, "Flower's own way takes 3.1"
