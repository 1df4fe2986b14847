"""One line of the privacy ledger, as an entry and as the JSON text that is chained and kept."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from client.ledger_head import LedgerError

SCHEMA = 1
LEFT = (
    "commit",
    "unprotected",
    "evaluation",
    "description",
    "exchange",
    "again",
)  # kinds of lines after which something left

_INFINITE = "infinite"  # JSON has no infinity
_REMEMBERED = 1 << 16  # lines whose entries a process keeps


@dataclass(frozen=True)
class Entry:
    """One line.

    kind: reserve (privacy is spent, before a training), commit (its update left), unprotected (an update left without a guarantee for
    patients or pictures), evaluation, description, exchange (a step of secure aggregation, in which a training's update leaves masked), again (an answer of before left once more), lost (an earlier ledger cannot be read).
    recipient: the consortium and its authority's fingerprint, empty in a simulation. plan: digest. unit, noise, rate, steps: the
    mechanism, noise over clip. before, after: epsilon of everything so far for `epsilon_of` at delta. reservations: numbers of the
    lines that a commit uses. left, bytes, examples: what left, its size, and the number of pictures that it says it is of.
    time: UTC. number, time: given by the ledger.
    """

    kind: str
    recipient: str = ""
    run: str = ""
    stage: str = ""
    round: int = 0
    plan: str = ""
    unit: str = ""
    noise: float | None = None
    rate: float | None = None
    steps: int | None = None
    accountant: str = ""
    epsilon_of: str = ""
    delta: float | None = None
    before: float | None = None
    after: float | None = None
    reservations: tuple[int, ...] = ()
    left: tuple[str, ...] = ()
    bytes: int = 0
    examples: int = 0
    note: str = ""
    number: int = 0
    time: str = ""

    def same_task(self, other: Entry) -> bool:
        """Whether both belong to one task: run, stage, round and plan."""
        return (self.run, self.stage, self.round, self.plan) == (other.run, other.stage, other.round, other.plan)

    def to_json(self) -> dict[str, Any]:
        """The fields with their values; an epsilon without bound is the word infinite."""
        return {name: _INFINITE if value == math.inf else value for name, value in asdict(self).items()}

    def to_line(self) -> str:
        """The text that stands in the ledger."""
        return json.dumps({"schema": SCHEMA} | self.to_json(), sort_keys=True, allow_nan=False)


@lru_cache(_REMEMBERED)
def entry_of(line: str) -> Entry:
    """The entry of a line; LedgerError where it is of another version of the format.

    A process reads the same text once: whoever looks at the ledger hashes all of it anew, which takes a tenth of the time.
    """
    try:
        values = json.loads(line)
    except ValueError:
        raise LedgerError("ledger: an entry is no JSON") from None
    if values.pop("schema", None) != SCHEMA or values.keys() != _FIELDS:
        raise LedgerError(f"ledger: entry {values.get('number')} is of another release's format; update this one")
    for name in ("reservations", "left"):
        values[name] = tuple(values[name])
    for name in ("before", "after"):
        values[name] = math.inf if values[name] == _INFINITE else values[name]
    return Entry(**values)


def chained(last: str, line: str) -> str:
    """A line's hash: SHA-256 of the hash before, empty for the first, a line feed, and the line; hexadecimal."""
    return hashlib.sha256(f"{last}\n{line}".encode()).hexdigest()


_FIELDS = {field.name for field in fields(Entry)}
