"""How the parts take time."""

from __future__ import annotations

import time
from collections.abc import Callable


def fastest(action: Callable[[], object], repeats: int = 5) -> float:
    """The least of the times of several repetitions, seconds: what noise of the machine disturbs least."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)
