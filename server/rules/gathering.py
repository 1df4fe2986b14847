"""A round's updates under the rule that the plan names: one `Gathering` takes them as they come and gives one update at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Protocol

from torch import Tensor

from cxrbase_model.aggregation import AngleMean, BoundedMean, Mean, Rule
from cxrbase_model.state import State
from server.aggregate import WeightedMean
from server.protection import Protection
from server.rules.held import Deferred
from server.rules.linear import AngleWeighted, Bounded, Plain
from server.rules.noised import Noised
from server.rules.rank import Ranked
from server.rules.spool import Spool

SPOOL = "spool"  # folder in the run directory


class Gathering(Protocol):
    """The same updates in any order give the same bits."""

    def fits(self, update: Mapping[str, Tensor], weight: int) -> bool:
        """Whether an update can be taken in at all."""

    def fold(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Take in one hospital's update; `weight` is a positive whole number."""

    def result(self) -> State:
        """The aggregated update, float32; ValueError where nothing was taken in."""


@contextlib.contextmanager
def gathering(
    rule: Rule,
    state: Mapping[str, Tensor],
    folder: Path,
    usual_norm: float | None,
    protection: Protection | None = None,
    *,
    hold: bool = False,
) -> Iterator[Gathering]:
    """What takes in the updates to `state` of one attempt at a round; what it spools to the run directory `folder` goes at the end.

    usual_norm: the median norm of the stage's last rounds, None in its first one. protection: what aggregation.privacy asks for, which
    goes with the mean alone. hold: makes it a `Held`, which can leave out again what it has taken in; not with protection.
    """
    if protection is not None:
        with WeightedMean({name: state[name] for name in sorted(protection.names)}, folder / SPOOL) as mean:
            yield Noised(mean, state, protection)
    elif isinstance(rule, Mean | BoundedMean | AngleMean):
        with WeightedMean(state, folder / SPOOL) as mean:
            if hold or (isinstance(rule, BoundedMean) and rule.bound is None and usual_norm is None):
                with Spool(folder / SPOOL / "held", state) as spool:
                    yield Deferred(spool, mean, lambda norms: _linear(rule, mean, state, usual_norm, norms))
            else:
                yield _linear(rule, mean, state, usual_norm)
    else:
        with Spool(folder / SPOOL, state) as spool:
            yield Ranked(rule, spool)


def _linear(
    rule: Mean | BoundedMean | AngleMean,
    mean: WeightedMean,
    state: Mapping[str, Tensor],
    usual_norm: float | None,
    norms: Sequence[float] = (),
) -> Gathering:
    """norms: of the round's own updates, where they are known: a stage's first round has no other usual norm."""
    if isinstance(rule, BoundedMean):
        usual = usual_norm if usual_norm is not None or not norms else median_low(norms)
        return Bounded(mean, rule.bound or (rule.factor * usual if usual is not None else None))
    return AngleWeighted(mean, state) if isinstance(rule, AngleMean) else Plain(mean)
