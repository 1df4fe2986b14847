"""Updates that wait on disk until all are there, so that one can still be left out for what the others are like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from cxrbase_model.state import State, norm
from server.aggregate import WeightedMean
from server.rules.spool import Spool


class Folding(Protocol):
    """A rule that takes in updates as they come."""

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Take in one hospital's update."""

    def result(self) -> State:
        """The aggregated update, float32; ValueError where nothing was taken in."""


class Held:
    """What the rules share that look at a round's updates once all are there: a spool of them. Memory holds one at a time."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Any finite update fits."""
        return True

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Write it to the spool; OSError on a full disk."""
        self.spool.add(site, update)

    def leave_out(self, site: str) -> None:
        """Forget a hospital's update; KeyError where there is none."""
        self.spool.remove(site)


class Deferred(Held):
    """A rule that folds updates into `mean`, which it is given in the order of the hospitals' names, at the end.

    rule: makes the rule of the norms of the updates that were kept.
    """

    def __init__(self, spool: Spool, mean: WeightedMean, rule: Callable[[list[float]], Folding]) -> None:
        super().__init__(spool)
        self._mean, self._rule = mean, rule
        self._weights: dict[str, int] = {}
        self._norms: dict[str, float] = {}

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether the accumulator's range holds it as it came."""
        return self._mean.fits(update, weight)

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Write it to the spool; OSError on a full disk."""
        super().fold(site, update, weight)
        self._weights[site], self._norms[site] = weight, norm(update)

    def result(self) -> State:
        """The rule over what was kept; ValueError where nothing was."""
        sites = self.spool.sites()
        rule = self._rule([self._norms[site] for site in sites])
        for site in sites:
            rule.fold(site, self.spool.update(site), self._weights[site])
        return rule.result()
