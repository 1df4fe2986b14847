"""What this hospital has answered so far, for its own eyes: a small file below the private folder."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cxrbase_model.files import write_private

_FILE = "tally.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Tally:
    """Tasks done, the last round that was answered, and how often each code was."""

    tasks: int = 0
    round: int | None = None
    codes: dict[str, int] = field(default_factory=dict)

    def with_answer(self, code: str | None, number: int | None) -> Tally:
        """The tally with one more answer: its code, None where the task was done, and its round, None where it has none."""
        if code is None:
            return replace(self, tasks=self.tasks + 1, round=number)
        return replace(
            self, round=self.round if number is None else number, codes=self.codes | {code: self.codes.get(code, 0) + 1}
        )


def read_tally(private: Path) -> Tally:
    """What was answered so far; nothing where the file is missing or damaged."""
    try:
        content = json.loads((private / _FILE).read_text(encoding="utf-8"))
        if content.pop("schema") != _SCHEMA:
            return Tally()
        return Tally(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Tally()


def note(private: Path, code: str | None, number: int | None) -> None:
    """Add an answer; a full disk costs the entry and not the answer."""
    content = {"schema": _SCHEMA, **asdict(read_tally(private).with_answer(code, number))}
    with contextlib.suppress(OSError):
        write_private(private / _FILE, json.dumps(content).encode())
