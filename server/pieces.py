"""The pieces that a reply comes in: how often the ServerApp looks for one that is still being uploaded, and how they are joined.

Both change what Flower does, in functions that have no option for it; where a version of Flower lacks them, rounds take longer and the
ServerApp more memory.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from typing import Any

from flwr.app import Array

_PAUSES = {"initial_backoff": 0.1, "backoff_cap": 0.5, "max_tries_per_object": None}


def look_often() -> None:
    """Look each half second; Flower does after 1, 2, 4, 8 seconds and then each 10, and up to a second of that is lost in each round."""
    with contextlib.suppress(ImportError):
        from flwr.supercore.inflatable.inflatable_utils import pull_objects

        (pull_objects.__kwdefaults__ or {}).update(_PAUSES)


@functools.cache
def join_in_place() -> None:
    """Let each piece go when it is joined: Flower holds the pieces and two copies of all together, three times the reply, for a moment."""
    with contextlib.suppress(ImportError, AttributeError):
        from flwr.supercore.inflatable.inflatable_object import (
            get_object_body,
            get_object_children_ids_from_object_content,
        )

        made: Callable[..., Array] = Array.inflate

        def inflate(cls: type[Array], object_content: bytes, children: dict[str, Any] | None = None) -> Array:
            held = children or {}
            hollow = {name: type(piece)(data=memoryview(b"")) for name, piece in held.items()}
            array = made(object_content, hollow)  # all of Flower's checks
            names = get_object_children_ids_from_object_content(object_content)
            places = json.loads(get_object_body(object_content, cls))["arraychunk_ids"]
            array.data = _joined([held[names[place]] for place in places])
            return array

        Array.inflate = classmethod(inflate)  # type: ignore[assignment, method-assign]


def _joined(pieces: list[Any]) -> bytes:
    """The bytes of pieces one after the other; they are empty afterwards, unless one is there twice."""
    whole, once = io.BytesIO(), len({id(piece) for piece in pieces}) == len(pieces)
    for piece in pieces:
        whole.write(piece.data)
        if once:
            piece.data = memoryview(b"")
    return whole.getvalue()  # which is not another copy
