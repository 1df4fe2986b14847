"""Aggregation: admitted updates become one global update.

The weighted mean is summed in 64-bit fixed point. Integer addition does not depend on the order in which replies come, so a
repeated round gives the same bits, while each reply is folded in at once and none is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cxrbase_model.state import State

FRACTION_BITS = 32  # resolution 2^-32 of weight x update: far below float32's own at the size of weights
_LIMIT = 2.0**62 / 2.0**FRACTION_BITS


class WeightedMean:
    """The mean of updates weighted by examples, or all alike (McMahan et al. 2017, arXiv 1602.05629).

    Memory: one int64 accumulator of the model's size, whatever the number of hospitals. The error of each element is at
    most (number of updates) / (2^33 x total weight).
    """

    def __init__(self, reference: Mapping[str, Tensor]) -> None:
        self._sums = {name: torch.zeros_like(tensor, dtype=torch.int64) for name, tensor in reference.items()}
        self.total_weight = 0
        self.count = 0

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether an update can be added without leaving the accumulator's range, room for 1,000 like it included."""
        largest = max((float(tensor.abs().max()) for tensor in update.values() if tensor.numel()), default=0.0)
        return largest * weight * 1000 < _LIMIT

    def fold(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Add one update; `weight` is a positive whole number. ValueError where it is not, or the range is left."""
        if weight < 1:
            raise ValueError(f"weight: expected a positive whole number, found {weight}")
        if not self.fits(update, weight):
            raise ValueError("update: its largest element times its weight leaves the accumulator's range")
        for name, total in self._sums.items():
            total += torch.round(update[name].double() * (weight * 2.0**FRACTION_BITS)).to(torch.int64)
        self.total_weight += weight
        self.count += 1

    def result(self) -> State:
        """The mean, float32; ValueError where nothing was folded in."""
        if not self.count:
            raise ValueError("mean of no updates")
        scale = self.total_weight * 2.0**FRACTION_BITS
        return {name: (total.double() / scale).float() for name, total in self._sums.items()}
