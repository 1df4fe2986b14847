"""The rules that fold each update into a sum as it comes: all are the exact fixed-point mean of something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from cxrbase_model.state import State, norm
from server.aggregate import FRACTION_BITS, WeightedMean


class Plain:
    """The weighted mean itself."""

    def __init__(self, mean: WeightedMean) -> None:
        self._mean = mean

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether the accumulator's range holds it."""
        return self._mean.fits(update, weight)

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Add it, of which `fits` was asked."""
        self._mean.fold(update, weight, fits=True)

    def result(self) -> State:
        """The mean; ValueError where nothing was added."""
        return self._mean.result()


class Bounded(Plain):
    """The weighted mean of updates whose norm is at most `bound`; None for no bound."""

    def __init__(self, mean: WeightedMean, bound: float | None) -> None:
        super().__init__(mean)
        self._bound = bound

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether the accumulator's range holds what is left of it."""
        return super().fits(self._scaled(update), weight)

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Scale it down where it is too long, and add it."""
        super().fold(site, self._scaled(update), weight)

    def _scaled(self, update: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        size = norm(update)
        if self._bound is None or size <= self._bound:
            return update
        return _Scaled(update, dict.fromkeys(update, self._bound / size))


class AngleWeighted(Plain):
    """The mean in which each layer of an update weighs as much as its weights point where the global ones do.

    A layer is a tensor. Its weight is that of the update times the cosine between global and local weights, none below zero; it is one
    where either is all zeros and has no direction.
    """

    def __init__(self, mean: WeightedMean, state: Mapping[str, Tensor]) -> None:
        super().__init__(mean)
        self._state = state
        self._total = 0
        self._shares = dict.fromkeys(state, 0)  # sums of weight x cosine, fixed point as in the accumulator

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Add each layer times its cosine, and the cosine to the layer's weights."""
        cosines = {name: _cosine(tensor, tensor + update[name]) for name, tensor in self._state.items()}
        super().fold(site, _Scaled(update, cosines), weight)
        self._total += weight
        for name, cosine in cosines.items():
            self._shares[name] += round(cosine * weight * 2.0**FRACTION_BITS)

    def result(self) -> State:
        """The mean of each layer over the weights of that layer; zero where all hospitals have turned away from it."""
        return {name: tensor * self._scale(name) for name, tensor in super().result().items()}

    def _scale(self, name: str) -> float:
        share = self._shares[name] / 2.0**FRACTION_BITS
        return self._total / share if share else 0.0


class _Scaled(Mapping[str, Tensor]):
    """Tensors times a factor each, multiplied when they are asked for, so that no second update is held."""

    def __init__(self, update: Mapping[str, Tensor], factors: Mapping[str, float]) -> None:
        self._update, self._factors = update, factors

    def __getitem__(self, name: str) -> Tensor:
        return self._update[name] * self._factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)


def _cosine(before: Tensor, after: Tensor) -> float:
    """The cosine of the angle between two tensors, 0 to 1, in float64; 1 where either is zero."""
    first, second = before.double().flatten(), after.double().flatten()
    lengths = float(first.norm() * second.norm())
    return min(max(float(first @ second) / lengths, 0.0), 1.0) if lengths else 1.0
