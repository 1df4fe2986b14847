"""What several trainings of the same data cost together."""

from __future__ import annotations

from collections.abc import Iterable

from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from cxrbase_model.privacy import Mechanism

_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [64, 128, 256, 512, 1024]


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """An upper bound of epsilon at delta, by Renyi accounting (Mironov et al. 2019, arXiv 1908.10530), as Opacus has it; 0 for none.

    Neighbours differ in one unit, added or removed. What the mechanisms did not release is not counted.
    """
    found = list(mechanisms)
    if not found:
        return 0.0
    total = sum(compute_rdp(q=m.rate, noise_multiplier=m.noise, steps=m.steps, orders=_ORDERS) for m in found)
    return float(get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])
