"""Updates on disk, read a slice of all of them at a time, so that memory depends neither on their number nor on the model's size."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.state import State

Slice = NDArray[np.float32]  # [N, S]: a run of S elements of each of N updates

_SLICE_BYTES = 16 << 20  # of one slice of all updates; the rules hold a few such


class Spool:
    """The updates of one attempt at a round: one file of float32 each, the tensors one after the other in name order.

    A context manager: what a killed attempt left is removed at the start, its own files at the end. Updates are read back in
    the order of their hospitals' names, in whatever order they came.
    """

    def __init__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        self._folder = folder
        self._shapes = {name: state[name].shape for name in sorted(state)}
        self._size = sum(math.prod(shape) for shape in self._shapes.values())
        self._files: dict[str, Path] = {}
        self._written = 0

    def __enter__(self) -> Spool:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def __len__(self) -> int:
        """The number of updates."""
        return len(self._files)

    def add(self, site: str, update: Mapping[str, Tensor]) -> None:
        """Write one hospital's update; OSError on a full disk."""
        path = self._folder / f"{self._written:05d}.f32"
        with path.open("wb") as file:
            # Not by numpy's tofile, which does not notice that the last numbers found no room.
            for name in self._shapes:
                file.write(update[name].contiguous().numpy())  # type: ignore[arg-type]  # numpy arrays are buffers
        self._files[site] = path
        self._written += 1

    def remove(self, site: str) -> None:
        """Forget a hospital's update; KeyError where there is none."""
        self._files.pop(site).unlink()

    def sites(self) -> list[str]:
        """The hospitals, in the order in which updates are read back."""
        return sorted(self._files)

    def update(self, site: str) -> Mapping[str, Tensor]:
        """One hospital's update, each tensor read when it is asked for."""
        return _Stored(self._files[site], self._shapes)

    def slices(self) -> Iterator[Slice]:
        """The elements of all updates from the first to the last, in slices; rows in the order of names."""
        length = max(1, _SLICE_BYTES // (4 * max(1, len(self._files))))
        for start in range(0, self._size, length):
            count = min(length, self._size - start)
            yield np.stack([self._read(self._files[site], start, count) for site in sorted(self._files)])

    def reduce(self, combine: Callable[[Slice], NDArray[np.floating]]) -> State:
        """The update whose elements `combine` makes of each slice, [N, S] to [S]; float32, all in one piece of memory."""
        flat = torch.empty(self._size, dtype=torch.float32)
        start = 0
        for piece in self.slices():
            flat.numpy()[start : start + piece.shape[1]] = combine(piece)
            start += piece.shape[1]
        parts = torch.split(flat, [math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _read(self, path: Path, start: int, count: int) -> NDArray[np.float32]:
        """Elements of a file. Mapped anew each time, so that pages that were read do not stay in the process's memory."""
        return np.array(np.memmap(path, np.float32, "r", offset=4 * start, shape=(count,)))


class _Stored(Mapping[str, Tensor]):
    """An update in its file: a tensor of it is in memory at a time."""

    def __init__(self, path: Path, shapes: Mapping[str, torch.Size]) -> None:
        self._path, self._shapes = path, shapes
        sizes = [math.prod(shape) for shape in shapes.values()]
        self._starts = dict(zip(shapes, itertools.accumulate(sizes, initial=0), strict=False))

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        numbers = np.fromfile(self._path, np.float32, math.prod(shape), offset=4 * self._starts[name])
        return torch.from_numpy(numbers).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
