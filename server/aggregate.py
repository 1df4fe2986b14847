"""Aggregation: admitted updates become one global update.

The weighted mean is summed in 64-bit fixed point. Integer addition does not depend on the order in which replies come, so a
repeated round gives the same bits, while each reply is folded in at once and none is kept.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.opened import Opened
from cxrbase_model.state import State

FRACTION_BITS = 32  # resolution 2^-32 of weight x update: far below float32's own at the size of weights
_LIMIT = 2.0**62 / 2.0**FRACTION_BITS
_PIECE = 1 << 16  # numbers that are summed at a time: 512 KB of sums, which stay in the processor's cache


class WeightedMean:
    """The mean of updates weighted by examples, or all alike (McMahan et al. 2017, arXiv 1602.05629).

    A context manager: the sums, 8 bytes for each parameter whatever the number of hospitals, are a file in `folder`, which is
    removed before and after. In memory is a piece of them at a time. The error of each element is at most (number of updates) /
    (2^33 x total weight).
    """

    def __init__(self, reference: Mapping[str, Tensor], folder: Path) -> None:
        self._shapes = {name: tensor.shape for name, tensor in reference.items()}
        self._folder = folder
        self.total_weight = 0
        self.count = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._file = (self._folder / "sums.i64").open("w+b", buffering=0)
        self._file.truncate(8 * sum(math.prod(shape) for shape in self._shapes.values()))  # reads as zeros
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether an update can be added without leaving the accumulator's range, room for 1,000 like it included."""
        if isinstance(update, Opened):
            return update.at_most * weight * 1000 < _LIMIT
        largest = max((_largest(tensor) for tensor in update.values() if tensor.numel()), default=0.0)
        return largest * weight * 1000 < _LIMIT

    def fold(self, update: Mapping[str, Tensor], weight: int, *, fits: bool = False) -> None:
        """Add one update; `weight` is a positive whole number. ValueError where it is not, or the range is left; OSError on a full disk.

        fits: the caller has asked already, and looking through all numbers again would find nothing new.
        """
        if weight < 1:
            raise ValueError(f"weight: expected a positive whole number, found {weight}")
        if not fits and not self.fits(update, weight):
            raise ValueError("update: its largest element times its weight leaves the accumulator's range")
        self._file.seek(0)
        room, sums = np.empty(_PIECE), np.empty(_PIECE, np.int64)  # new ones for each piece cost more than the work
        for name in self._shapes:
            for piece in _pieces_of(update, name):
                scaled, added = room[: len(piece)], sums[: len(piece)]
                np.multiply(piece, weight * 2.0**FRACTION_BITS, out=scaled, dtype=np.float64)
                np.copyto(added, np.rint(scaled, out=scaled), casting="unsafe")
                if self.count:  # else the file is a hole, which takes longer to read than the sums
                    added += self._read(room[: len(piece)].view(np.int64))
                    self._file.seek(-added.nbytes, 1)
                self._write(added)
        self.total_weight += weight
        self.count += 1

    def result(self) -> State:
        """The mean, float32; ValueError where nothing was folded in."""
        if not self.count:
            raise ValueError("mean of no updates")
        scale = self.total_weight * 2.0**FRACTION_BITS
        mean = {name: torch.empty(shape, dtype=torch.float32) for name, shape in self._shapes.items()}
        room = np.empty(_PIECE)
        for name, start, sums in self._pieces():
            mean[name].view(-1).numpy()[start : start + len(sums)] = np.divide(sums, scale, out=room[: len(sums)])
        return mean

    def noised(self, draw: Callable[[int], NDArray[np.float64]], scale: float) -> State:
        """`scale` times the sum and noise, float32; `draw` gives so many float64 numbers, a piece at a time. Zeros count where nothing was folded in."""
        total = {name: torch.empty(shape, dtype=torch.float32) for name, shape in self._shapes.items()}
        for name, start, sums in self._pieces():
            numbers = sums / 2.0**FRACTION_BITS + draw(len(sums))
            total[name].view(-1).numpy()[start : start + len(sums)] = numbers * scale
        return total

    def _pieces(self) -> Iterator[tuple[str, int, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
        """Each piece of the sums, until the next is asked for, with its tensor's name and its first element there."""
        self._file.seek(0)
        sums = np.empty(_PIECE, np.int64)
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            for start in range(0, size, _PIECE):
                yield name, start, self._read(sums[: size - start])

    def _write(self, sums: NDArray[np.int64]) -> None:
        """Not by numpy's tofile, which does not notice that the last numbers found no room on a full disk: the next would be added to zeros."""
        left = memoryview(sums).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
        while left:
            left = left[self._file.write(left) :]

    def _read(self, into: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next sums of the file; OSError where it has been cut short."""
        if self._file.readinto(into) != into.nbytes:  # type: ignore[arg-type]  # numpy arrays are buffers
            raise OSError(f"{self._file.name}: expected the sums of a round, found the file's end")
        return into


def _pieces_of(update: Mapping[str, Tensor], name: str) -> Iterator[NDArray[np.floating]]:
    """The numbers of a tensor of an update, at most `_PIECE` at a time. It is asked for once: an update may make it as it is read."""
    parts = update.pieces(name) if isinstance(update, Opened) else (update[name].contiguous().view(-1),)
    for part in parts:
        for start in range(0, len(part), _PIECE):
            yield part[start : start + _PIECE].numpy()


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, without a copy of the tensor."""
    low, high = tensor.aminmax()
    return max(-float(low), float(high))
