"""Cache rows to batches: straight out of memory-mapped uint8 shards, in an order that follows from a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.archive.cache import CODES, CacheError, Index, read_index, read_table
from client.archive.identity import SPLITS
from cxrbase_model.ahead import read_ahead
from cxrbase_model.plan import DataSpec
from cxrbase_model.rows import training_rows
from cxrbase_model.settings import digest

__all__ = ["Batch", "Cache", "CacheError", "batches"]

Batch = tuple[Tensor, Tensor]  # uint8 [B, H, W] and float32 [B, C]


class Cache:
    """A hospital's ingested archive, read-only. Pixels stay on disk until they are asked for; the table is in memory.

    labels: float32 [N, C], NaN where unknown. patients: int64 [N], a dense number per patient. splits: uint8 [N], an index
    into SPLITS. groups: per attribute (sex, age_band, view, scanner) uint8 [N], an index into `group_names`.
    """

    def __init__(self, folder: Path, index: Index, table: dict[str, NDArray[Any]]) -> None:
        self.spec: DataSpec = index.spec
        self.spec_digest = digest(index.spec)
        self.exclusions = index.exclusions
        self.shape = (index.height, index.width)
        self.labels: NDArray[np.float32] = table["labels"]
        self.splits: NDArray[np.uint8] = table["split"]
        self.patients: NDArray[np.int64] = _dense(table["patient"])
        self.groups: dict[str, NDArray[np.uint8]] = {name: table[name] for name in CODES if name != "split"}
        self.group_names = {name: names for name, names in CODES.items() if name != "split"}
        self._shard, self._slot = table["shard"].astype(np.int64), table["slot"].astype(np.int64)
        self._maps = [_map(folder / shard.file, (shard.rows, *self.shape)) for shard in index.shards]

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """Open a cache folder; CacheError where it is missing, incomplete or of another version."""
        index = read_index(folder)
        return cls(folder, index, read_table(folder, index))

    def __len__(self) -> int:
        return len(self.splits)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of train, validation or test, ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of some rows, uint8 [B, H, W], in that order."""
        pictures = np.empty((len(rows), *self.shape), np.uint8)
        places = zip(self._shard[rows].tolist(), self._slot[rows].tolist(), strict=True)
        for index, (shard, slot) in enumerate(places):
            pictures[index] = self._maps[shard][slot]
        return pictures


def batches(
    cache: Cache,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    epochs: float,
    balance: str = "none",
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches of pictures and labels for `epochs` passes over `rows`, each pass in a new order; a part of a pass is possible. `balance`
    is that of the stage: other than none, it draws them.

    Every batch has the same size, so that compiled models see one shape: the last one goes on into the next pass. The order
    depends on rows, seed and sizes only, not on `workers`, the number of threads that read ahead (0: none).
    """
    if len(rows) == 0:
        return
    order = training_rows(cache, rows, batch_size, seed, epochs, balance)
    yield from read_ahead(partial(_batch, cache), order, workers)


def _batch(cache: Cache, rows: NDArray[np.int64]) -> Batch:
    return torch.from_numpy(cache.pixels(rows)), torch.from_numpy(cache.labels[rows])


def _dense(keys_NK: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the patients by the order of their keys."""
    _, numbers = np.unique(keys_NK, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)


def _map(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r", shape=shape).view(np.ndarray)
    except (OSError, ValueError):
        raise CacheError(f"{path.name} is missing or too short; run cxrbase-client verify") from None
