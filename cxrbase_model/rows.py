"""Which rows of a table of pictures are learned from, and in which batches: a function of the table, sizes and random numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_MOST_OFTEN = 10.0  # how much more often than in turn a balanced sampler draws a picture


class Table(Protocol):
    """labels: float32 [N, C], NaN where unknown. patients: int64 [N]."""

    labels: NDArray[np.float32]
    patients: NDArray[np.int64]


def labelled(table: Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows that have at least one known label."""
    return rows[np.isfinite(table.labels[rows]).any(axis=1)]


def labelled_share(table: Table, rows: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """The labelled rows of a seeded share of the patients; the same share of the same table is the same rows.

    Patients are drawn, not pictures, and at least one; a smaller share is always part of a larger one.
    """
    rows = labelled(table, rows)
    patients = np.unique(table.patients[rows])
    order = np.random.default_rng(seed).permutation(len(patients))
    chosen = patients[order[: max(1, math.ceil(fraction * len(patients)))]]
    return rows[np.isin(table.patients[rows], chosen)]


def steps_of(examples: int, batch_size: int, epochs: float) -> int:
    """How many batches `epochs` passes over so many examples make, at least one."""
    return max(1, math.ceil(examples * epochs / batch_size))


def batch_rows(rows: NDArray[np.int64], batch_size: int, seed: int, epochs: float) -> Iterator[NDArray[np.int64]]:
    """The rows of each batch, each pass in a new order; a part of a pass is possible.

    Every batch has the same size, so that compiled models see one shape: the last one goes on into the next pass.
    """
    size = min(batch_size, max(1, math.ceil(len(rows) * epochs)))
    rng = np.random.default_rng(seed)
    ready = rows[:0]
    for _ in range(steps_of(len(rows), batch_size, epochs)):
        while len(ready) < size:
            ready = np.concatenate([ready, rng.permutation(rows)])
        yield ready[:size]
        ready = ready[size:]


def training_rows(
    table: Table, rows: NDArray[np.int64], batch_size: int, seed: int, epochs: float, balance: str = "none"
) -> Iterator[NDArray[np.int64]]:
    """The rows of each batch of a training: in turn as by `batch_rows`, or drawn as `FinetuneStage.balance` says, in as many batches of
    the same size.
    """
    if balance == "none" or len(rows) == 0:
        return batch_rows(rows, batch_size, seed, epochs)
    size, steps = min(batch_size, max(1, math.ceil(len(rows) * epochs))), steps_of(len(rows), batch_size, epochs)
    return _drawn_rows(rows, finding_chances(table.labels[rows]), size, seed, steps)


def finding_chances(labels_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """The chance of each picture [N] to be drawn next, so that a finding comes up as often as any other, present as often as absent.

    As if one drew a finding, then present or absent, then a picture that is known to be so; what no picture shows is left out. With one
    finding that is half and half. Where few pictures show something, none of them comes more than ten times as often as in turn: a
    finding of a handful of patients would else be learned by heart.
    """
    known, present = np.isfinite(labels_NC), labels_NC >= 0.5
    cells = np.concatenate([present, known & ~present], axis=1)
    cells = cells[:, cells.any(axis=0)]
    chances: NDArray[np.float64] = (cells / cells.sum(axis=0)).mean(axis=1)
    chances = np.minimum(chances, _MOST_OFTEN / len(chances))
    chances /= chances.sum()
    return chances


def balanced_rows(
    rows: NDArray[np.int64], cells: NDArray[np.int64], batch_size: int, seed: int, steps: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of `steps` batches in which every cell (say, a finding of a hospital) comes equally often, drawn with repeats.

    cells: int64 [len(rows)], the cell of each row.
    """
    _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
    return _drawn_rows(rows, 1.0 / (len(counts) * counts[cell]), batch_size, seed, steps)


def _drawn_rows(
    rows: NDArray[np.int64], chances: NDArray[np.float64], batch_size: int, seed: int, steps: int
) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield rng.choice(rows, batch_size, p=chances)


def poisson_rows(
    rows: NDArray[np.int64],
    units: NDArray[np.int64],
    rate: float,
    steps: int,
    uniform: Callable[[int], NDArray[np.float64]],
) -> Iterator[NDArray[np.int64]]:
    """The rows of `steps` batches that each unit is in with chance `rate`, whatever the others are, by one of its rows, each as likely.

    units: int64 [len(rows)], the unit of each row. uniform: gives so many numbers in [0, 1). A batch may be empty.
    """
    order = np.argsort(units, kind="stable")
    _, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
    for _ in range(steps):
        drawn = np.flatnonzero(uniform(len(starts)) < rate)
        places = (uniform(len(drawn)) * counts[drawn]).astype(np.int64)
        yield rows[order[starts[drawn] + places]]
