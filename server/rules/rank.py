"""The rules that need all updates at once. They count hospitals alike: a claimed number of examples would be one more way to attack."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.aggregation import GeometricMedian, Krum, Median, TrimmedMean
from cxrbase_model.state import State
from server.rules.held import Held
from server.rules.spool import Slice, Spool

Matrix = NDArray[np.float64]

_MOST_ITERATIONS = 1000
_STILL = 1e-12  # change of the weights, of their sum of one, at which Weiszfeld's iteration ends


class Ranked(Held):
    """One of the rules over a spool of the round's updates."""

    def __init__(self, rule: Median | TrimmedMean | Krum | GeometricMedian, spool: Spool) -> None:
        super().__init__(spool)
        self._rule = rule

    def result(self) -> State:
        """The rule over all updates; ValueError where there are none."""
        if not len(self.spool):
            raise ValueError("aggregate of no updates")
        rule, count = self._rule, len(self.spool)
        if isinstance(rule, Median):
            return self.spool.reduce(median)
        if isinstance(rule, TrimmedMean):
            return self.spool.reduce(lambda piece: trimmed_mean(piece, rule.share))
        products = inner_products(self.spool)
        if isinstance(rule, Krum):
            chosen = krum(distances_of(products), rule.attackers, rule.selected)
            weights = np.isin(np.arange(count), chosen) / len(chosen)
        else:
            weights = weiszfeld(products, rule.smoothing)
        return self.spool.reduce(lambda piece: _weighted_sum(weights, piece))


def median(piece: Slice) -> NDArray[np.float64]:
    """The median of each column of [N, S]; the mean of the two in the middle where N is even."""
    count = len(piece)
    ordered = np.sort(piece, axis=0)
    return np.asarray((ordered[(count - 1) // 2].astype(np.float64) + ordered[count // 2]) / 2)


def trimmed_mean(piece: Slice, share: float) -> NDArray[np.float64]:
    """The mean of each column of [N, S] without the share of the largest and of the smallest, rounded up, while one is left."""
    count = len(piece)
    cut = min(math.ceil(round(share * count, 9)), (count - 1) // 2)
    ordered = np.sort(piece, axis=0)[cut : count - cut]
    return np.asarray(ordered.sum(axis=0, dtype=np.float64) / len(ordered))


def inner_products(spool: Spool) -> Matrix:
    """The inner products of all pairs of updates, [N, N], in float64."""
    products = np.zeros((len(spool), len(spool)))
    for piece in spool.slices():
        rows = piece.astype(np.float64)
        products += rows @ rows.T
    return products


def distances_of(products: Matrix) -> Matrix:
    """The squared Euclidean distances of vectors with these inner products, [N, N]."""
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def krum(distances: Matrix, attackers: int, selected: int) -> NDArray[np.intp]:
    """The updates, of N with these squared distances, whose N - attackers - 2 nearest others are nearest; the first of equals."""
    near = max(1, len(distances) - attackers - 2)
    scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(axis=1)
    return np.asarray(np.argsort(scores, kind="stable")[:selected])


def weiszfeld(products: Matrix, smoothing: float) -> Matrix:
    """The weights [N], adding up to one, with which vectors make their geometric median (Weiszfeld's iteration).

    products: inner products of all pairs, [N, N]. Each iterate is a mean of the vectors, and its distance to each of them follows from
    these: no vector is looked at again, and one that is 1e30 times as long as the others costs these no digits, as it would where distances
    are given. smoothing: the smallest distance divided by, of the radius within which the closest majority lies; fewer than half widen neither
    that nor the start, which is the mean of that majority.
    """
    distances = np.sqrt(distances_of(products))
    radii = np.sort(distances, axis=1)[:, len(distances) // 2]
    centre = int(np.argmin(radii))
    floor = smoothing * float(radii[centre])
    if floor == 0.0:  # more than half are alike: they are the median
        twins = distances[centre] == 0.0
        return np.asarray(twins / twins.sum())
    near = distances[centre] <= radii[centre]
    weights: Matrix = near / near.sum()
    for _ in range(_MOST_ITERATIONS):
        along = products @ weights
        to_each = np.sqrt(np.maximum(np.diag(products) - 2 * along + weights @ along, 0.0))
        closer = 1 / np.maximum(to_each, floor)
        closer /= closer.sum()
        moved, weights = float(np.abs(closer - weights).sum()), closer
        if moved < _STILL:
            break
    return weights


def _weighted_sum(weights: Matrix, piece: Slice) -> NDArray[np.float64]:
    """The sum of the rows of [N, S] times their weights [N], in their order."""
    total = np.zeros(piece.shape[1])
    for weight, row in zip(weights, piece, strict=True):
        if weight:
            total += weight * row.astype(np.float64)
    return total
