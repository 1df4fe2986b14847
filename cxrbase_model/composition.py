"""What several trainings of the same data cost together, by Renyi accounting (Mironov 2017, arXiv 1702.07476)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.privacy import UNITS, Mechanism

_ORDERS = np.array([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [64, 128, 256, 512, 1024])


def epsilon(mechanisms: Iterable[Mechanism], unit: str, delta: float) -> float:
    """Epsilon of mechanisms together for a patient or a picture, added or removed; 0 for none, infinite where there is no bound.

    A guarantee for pictures is none for patients, who may have any number. One for patients is one for each picture at twice the
    distance: without the patient, and back with the other pictures. ValueError for a mechanism that cannot be.
    """
    steps: Counter[tuple[str, float, float]] = Counter()
    for each in mechanisms:
        if not (each.unit in UNITS and each.noise > 0 and 0 < each.rate <= 1 and each.steps >= 1):
            raise ValueError(f"no mechanism of this kind is known: {each}")
        steps[each.unit, each.noise, each.rate] += each.steps
    if not steps:
        return 0.0
    if unit == "patient" and any(of == "picture" for of, _, _ in steps):
        return math.inf
    total = sum(count * _curve(noise, rate, of != unit) for (of, noise, rate), count in steps.items())
    # Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12
    bounds = total + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(np.nanmin(bounds, initial=math.inf)))


@lru_cache(4096)
def _curve(noise: float, rate: float, twice: bool) -> NDArray[np.float64]:
    """The Renyi divergence of one step at each order; at twice the distance by Mironov's corollary 4."""
    if twice:
        far = _divergence(noise, rate, tuple(2 * _ORDERS))
        far *= (_ORDERS - 0.5) / (_ORDERS - 1)
        return far + _divergence(noise, rate, tuple(2 * _ORDERS - 1))
    return _divergence(noise, rate, tuple(_ORDERS))


def _divergence(noise: float, rate: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Of the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019, arXiv 1908.10530); infinite where it is not a number."""
    from opacus.accountants.analysis.rdp import compute_rdp  # torch takes a second that other commands need not wait

    try:
        with np.errstate(all="ignore"):
            found = np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(orders)), np.float64)
    except ArithmeticError:  # hardly any noise
        return np.full(len(orders), math.inf)
    safe: NDArray[np.float64] = np.where(np.isfinite(found) & (found >= 0), found, math.inf)
    return safe
