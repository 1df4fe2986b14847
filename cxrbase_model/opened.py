"""An int8 state that stays packed, and whose numbers are made as they are read: a quarter of the memory."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.codec import SCALE, CodecError, decode, plain
from cxrbase_model.quantize import restored_pieces, rows_and_columns
from cxrbase_model.stored import Place, places
from cxrbase_model.transport import Packing


def opened(data: bytes, packing: Packing, parameters: int) -> Mapping[str, Tensor]:
    """As `codec.decode`, but an int8 state stays packed."""
    return (
        Opened(plain(data, packing, parameters)) if packing.precision == "int8" else decode(data, packing, parameters)
    )


class Opened(Mapping[str, Tensor]):
    """The float32 tensors of an int8 state; CodecError where the bytes are of none. The numbers are read where they are, without a copy."""

    def __init__(self, data: bytes) -> None:
        self._data, found = data, places(io.BytesIO(data), len(data))
        self._steps = {name: place for name, place in found.items() if not name.startswith(SCALE)}
        self._scales: dict[str, NDArray[np.float32]] = {}
        for name, place in self._steps.items():
            scale = found.get(SCALE + name)
            rows = rows_and_columns(place.shape)[:1]
            if scale is None or (place.dtype, scale.dtype, scale.shape) != (torch.int8, torch.float32, rows):
                raise CodecError("expected int8 tensors, each with a float32 scale for its rows")
            self._scales[name] = self._array(scale, np.float32)
        if len(found) != 2 * len(self._steps):
            raise CodecError("expected a tensor for each scale")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor; KeyError where there is none of the name."""
        whole, start = torch.empty(math.prod(self.shape(name))), 0
        for piece in self.pieces(name):
            whole[start : start + len(piece)] = piece
            start += len(piece)
        return whole.view(self.shape(name))

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The numbers of a tensor, a piece [N] at a time, which holds until the next is asked for; KeyError where there is none of the name."""
        place = self._steps[name]
        steps = self._array(place, np.int8).reshape(rows_and_columns(place.shape))
        return restored_pieces(steps, self._scales[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; KeyError where there is none of the name."""
        return self._steps[name].shape

    @property
    def at_most(self) -> float:
        """What no magnitude is above, told without making a tensor."""
        return max((128 * float(np.abs(scale).max()) for scale in self._scales.values() if scale.size), default=0.0)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._steps)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._steps)

    def _array(self, place: Place, kind: type[np.generic]) -> NDArray[Any]:
        return np.frombuffer(self._data, kind, math.prod(place.shape), place.start)
