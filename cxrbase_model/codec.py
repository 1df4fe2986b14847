"""How a state or an update is packed for the wire and for the disk: safetensors, which holds tensors and nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors
import safetensors.torch
from torch import Tensor

from cxrbase_model.state import State


class CodecError(ValueError):
    """Packed bytes do not hold a state."""


def pack(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of a state; the same state gives the same bytes."""
    return safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})


def unpack(data: bytes) -> State:
    """The state of packed bytes; CodecError where they hold none."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError):
        raise CodecError(f"expected the bytes of a packed state, found {len(data)} bytes of something else") from None
