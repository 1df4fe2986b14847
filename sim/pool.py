"""The pictures of several hospitals as one table, and which patients' labels are learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.archive.identity import SPLITS
from client.dataset import Cache
from client.site import read_site
from cxrbase_model.rows import labelled
from cxrbase_model.seeds import derive_seed

TRAIN, VALIDATION, TEST = map(SPLITS.index, ("train", "validation", "test"))
_PREDICT_BATCH = 64


class Pool:
    """The pictures of several hospitals as one table.

    pictures: uint8 [N, S, S]. labels: float32 [N, C], NaN where unknown. patients: int64 [N], no two hospitals' alike. hospitals:
    int64 [N], an index into `names`. splits: uint8 [N], an index into train, validation, test. groups: as in `Cache`, uint8 [N] each.

    An identifier of more pictures than `largest_patient` is no person's, but what an archive writes where it does not know better:
    each of its pictures is taken for a patient, and drawn into a split of its own. None trusts all identifiers.
    """

    def __init__(self, sites: list[Path], largest_patient: int | None = None) -> None:
        loaded = [(site.site, Cache.open(site.cache_folder)) for site in map(read_site, sites)]
        self.names = [name for name, _ in loaded]
        self.pictures = np.concatenate([cache.pixels(np.arange(len(cache))) for _, cache in loaded])
        self.labels = np.concatenate([cache.labels for _, cache in loaded])
        self.splits = np.concatenate([cache.splits for _, cache in loaded])
        self.groups = {
            name: np.concatenate([cache.groups[name] for _, cache in loaded]) for name in ("sex", "age_band")
        }
        self.hospitals = np.repeat(np.arange(len(loaded)), [len(cache) for _, cache in loaded])
        self.patients = np.concatenate([cache.patients for _, cache in loaded]) + (self.hospitals << 32)
        if largest_patient is not None:
            spec = loaded[0][1].spec
            self._take_apart(largest_patient, spec.validation, spec.test)

    def _take_apart(self, largest_patient: int, validation: float, test: float) -> None:
        _, index, counts = np.unique(self.patients, return_inverse=True, return_counts=True)
        apart = np.flatnonzero(counts[index] > largest_patient)
        self.patients[apart] = (self.hospitals[apart] << 32) + (1 << 31) + apart
        drawn = np.random.default_rng(derive_seed(0, "taken apart")).random(len(apart))
        self.splits[apart] = np.where(drawn < test, TEST, np.where(drawn < test + validation, VALIDATION, TRAIN))

    def rows(self, split: int, without: str = "") -> NDArray[np.int64]:
        """Rows of a split, but those of one hospital."""
        chosen = self.splits == split
        if without:
            chosen &= self.hospitals != self.names.index(without)
        return np.flatnonzero(chosen)

    def of(self, hospital: str) -> NDArray[np.int64]:
        """All rows of one hospital."""
        return np.flatnonzero(self.hospitals == self.names.index(hospital))

    def cells(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The hospital and the first finding of each row as one number: twice the hospital's, one more where it is there."""
        present: NDArray[np.bool_] = self.labels[rows, 0] >= 0.5
        return self.hospitals[rows] * 2 + present.astype(np.int64)

    def batches(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """The pictures of some rows, uint8, a few at a time."""
        for part in np.array_split(rows, max(1, -(-len(rows) // _PREDICT_BATCH))):
            yield torch.from_numpy(self.pictures[part])


def stratified_share(pool: Pool, rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """The labelled rows of a seeded share of the patients of each cell (a hospital with, or without, the first finding), at least one of each.

    A patient who has pictures of both kinds is of the cell that has the finding. A smaller share is always part of a larger one.
    """
    rows = labelled(pool, rows)
    patients, index = np.unique(pool.patients[rows], return_inverse=True)
    cells = np.zeros(len(patients), np.int64)
    np.maximum.at(cells, index, pool.cells(rows))
    chosen = np.zeros(len(patients), bool)
    for cell in np.unique(cells):
        order = np.random.default_rng(derive_seed(seed, "cell", str(cell))).permutation(np.flatnonzero(cells == cell))
        chosen[order[: math.ceil(share * len(order))]] = True
    return rows[chosen[index]]
