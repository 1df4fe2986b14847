"""The sum of clipped updates with noise, over how many hospitals were asked (aggregation.privacy)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cxrbase_model.clipping import factor, is_short
from cxrbase_model.state import State, norm, size
from server.aggregate import WeightedMean
from server.protection import Protection


class Noised:
    """Updates are clipped again as they come, each counts as one, and the sum gets its noise once, before anybody sees it.

    mean: sums over the protected tensors, counted in clips. state: names and shapes of a whole update.
    """

    def __init__(self, mean: WeightedMean, state: Mapping[str, Tensor], protection: Protection) -> None:
        self._mean, self._state, self._protection = mean, state, protection
        self._short = 0.0
        self._longest = protection.longest(size({name: state[name] for name in protection.names}))

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether an update is as long as one can be that has its hospital's noise in it, and the sum has room for it; without noise, any
        is, since it is clipped.
        """
        if self._protection.clips:
            return True
        shared = {name: update[name] for name in self._protection.names}
        if norm(shared) > self._longest * self._protection.clip:
            return False
        return self._mean.fits(_Scaled(shared, 1 / self._protection.clip), 1)

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Add it, clipped; the weight does not count."""
        clip, names, scale = self._protection.clip, self._protection.names, 1.0
        if self._protection.clips:
            self._short += 0.5 if is_short(update, clip, names) else -0.5
            scale = factor(update, clip, names)
        self._mean.fold(_Scaled({name: update[name] for name in names}, scale / clip), 1, fits=True)

    def result(self) -> State:
        """The noised sum over how many were asked, float32, zero where nothing is protected. OSError on a full disk."""
        self._protection.spend()
        self._protection.count(self._short)
        total = self._mean.noised(self._protection.draw, self._protection.clip / self._protection.divisor)
        return {
            name: total[name] if name in total else torch.zeros_like(tensor) for name, tensor in self._state.items()
        }


class _Scaled(Mapping[str, Tensor]):
    """Tensors times a number, each multiplied when it is asked for, so that no second update is held."""

    def __init__(self, update: Mapping[str, Tensor], scale: float) -> None:
        self._update, self._scale = update, scale

    def __getitem__(self, name: str) -> Tensor:
        return self._update[name].double() * self._scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._update)

    def __len__(self) -> int:
        return len(self._update)
