"""What hospital-level privacy a run has spent: a line for each noised sum, on disk before the sum is made.

A sum whose round was not committed, because the server was stopped in between, counts all the same.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "privacy.jsonl"

_SCHEMA = 1
_ORDERS = [
    *(1 + x / 1000 for x in range(1, 100)),
    *(1 + x / 20 for x in range(2, 200)),
    *range(11, 128),
    *(2**x for x in range(7, 21)),
]


@dataclass(frozen=True)
class Sum:
    """One noised sum: `noise` is its standard deviation over the clip, `asked` are the hospitals whose updates could be in it."""

    round: int
    attempt: int
    noise: float
    asked: tuple[str, ...]


class Spent:
    """The sums of a run in its directory, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def add(self, made: Sum) -> None:
        """Count a sum that is about to be made; OSError on a full disk, and then it must not be made."""
        line = json.dumps({"schema": _SCHEMA, **asdict(made)}).encode() + b"\n"
        with self._file.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":  # a kill tore a line, before its sum was made
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def sums(self) -> list[Sum]:
        """All sums that were counted; a torn line is none."""
        found = []
        for line in self._file.read_bytes().split(b"\n") if self._file.exists() else ():
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            found.append(Sum(fields["round"], fields["attempt"], fields["noise"], tuple(fields["asked"])))
        return found

    def most(self) -> int:
        """The most sums that one hospital was asked for."""
        return max(Counter(name for made in self.sums() for name in made.asked).values(), default=0)

    def epsilons(self, delta: float) -> dict[str, float]:
        """Hospital to the epsilon of all sums that it was asked for; infinite where one had no noise."""
        noises: dict[str, list[float]] = {}
        for made in self.sums():
            for name in made.asked:
                noises.setdefault(name, []).append(made.noise)
        return {name: epsilon(found, delta) for name, found in sorted(noises.items())}


def epsilon(noises: Iterable[float], delta: float) -> float:
    """Epsilon at delta of Gaussian mechanisms of these noise multipliers, by Renyi accounting (Mironov 2017, arXiv 1702.07476).

    Every one counts whole, at rate 1: the cohort is drawn by the plan's seed, which every hospital knows, so that the draw hides nobody.
    0 for none, infinite where a multiplier is 0.
    """
    steps = Counter(noises)
    if not steps or 0 in steps:
        return math.inf if steps else 0.0
    from opacus.accountants import RDPAccountant  # takes seconds, which a run that promises nothing need not wait

    accountant = RDPAccountant()
    accountant.history = [(noise, 1.0, count) for noise, count in sorted(steps.items())]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that the best order is at the end of the range: the bound holds, a little loose
        return max(0.0, float(accountant.get_epsilon(delta, alphas=_ORDERS)))
