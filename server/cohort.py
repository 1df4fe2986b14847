"""Who is asked in a round: a seeded choice among the hospitals that are there."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from cxrbase_model.seeds import derive_seed


def choose(sites: Iterable[str], fraction: float, quorum: int, seed: int, round_number: int) -> list[str]:
    """The sites asked in a round, sorted: the given share of them, but never fewer than the quorum where they are there.

    The choice depends on the set of sites, the run's seed and the round alone, so that a repeated round asks the same.
    """
    available = sorted(sites)
    count = min(len(available), max(quorum, math.ceil(round(fraction * len(available), 9))))
    chooser = random.Random(derive_seed(seed, "cohort", round_number))
    return sorted(chooser.sample(available, count))
