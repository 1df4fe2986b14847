"""What has left this hospital and what it cost in privacy, one line each, for life: append-only, on the hospital's own disk.

Each line is chained to the one before by SHA-256, so that a changed, missing or added line is noticed. The last line also stands in a
file of its own, the head, sealed with the hospital's secret. The head is written first and the table second: a line that is in the
head alone, because the machine died in between, is added at the next opening; lines that the head knows and the table lacks were taken away.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from client.archive.identity import load_secret
from client.ledger_entry import LEFT, Entry, chained, entry_of
from client.ledger_head import Head, LedgerError, read_head, write_head
from cxrbase_model.files import open_private, private_folder

__all__ = ["FOLDER", "HEAD", "LEFT", "Entry", "Ledger", "LedgerError", "Seal"]

FOLDER, HEAD = "ledger", "ledger.head"

_WAIT = 60.0  # seconds for another task's turn
_TABLE = (
    "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, line TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
)


@dataclass(frozen=True)
class Seal:
    """A ledger's length and last hash; whoever keeps it can tell later whether the ledger still holds that line."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class Ledger:
    """The ledger of a private folder; `witness` is a second head, best on another disk, that a restored folder does not bring back."""

    def __init__(self, private: Path, witness: Path | None = None) -> None:
        self._private = private
        self._path = private / FOLDER / "ledger.sqlite"
        self._head, self._others = private / HEAD, (witness,) if witness is not None else ()

    def add(self, make: Callable[[list[Entry]], Entry]) -> Entry:
        """Add the line that `make` gives for all lines so far; what it raises adds nothing. No other line comes in between.

        The line is on the disk when this returns. LedgerError where the ledger was altered.
        """
        load_secret(self._private)  # made at first use, where it is not asked to seal an older ledger
        private_folder(self._path.parent)
        open_private(self._path, os.O_RDWR).close()  # 0600 before SQLite writes a byte
        with self._turn() as base:
            lines, last = self._verified(base)
            number = len(lines) + 1
            entry = replace(make([entry_of(line) for line in lines]), number=number, time=_now())
            line = entry.to_line()
            head = Head(number, line, chained(last, line))
            for path in (*self._others, self._head):
                write_head(path, head, self._private)
            _insert(base, head)
            base.execute("COMMIT")
        return entry

    def entries(self) -> list[Entry]:
        """All lines, oldest first; LedgerError where the ledger was altered. A ledger that is not there yet is not made."""
        return self._read()[0]

    def seal(self) -> Seal:
        """Length and last hash."""
        entries, last = self._read()
        return Seal(len(entries), last)

    def holds(self, seal: Seal) -> bool:
        """Whether the ledger still holds the line that a seal names."""
        if not self.entries():
            return seal.number == 0
        with self._turn() as base:
            found = base.execute("SELECT hash FROM entries WHERE number = ?", (seal.number,)).fetchone()
        return seal.number == 0 or (found is not None and found[0] == seal.hash)

    def count(self) -> int:
        """How many lines there are, unverified."""
        if not self._path.exists():
            return 0
        with self._turn() as base:
            return int(base.execute("SELECT count(*) FROM entries").fetchone()[0])

    def begin_again(self, reason: str) -> Path:
        """Put a ledger that cannot be read aside and begin a new one whose first line says so; the folder it now lies in.

        What was spent before is not known any more, so no epsilon can be stated from then on.
        """
        aside = private_folder(self._private / f"{FOLDER}.broken-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        for path in (self._head, self._path.parent, *self._others):
            if path.exists():
                shutil.move(path, aside / path.name)
        self.add(lambda _: Entry("lost", note=f"{reason} ({aside.name})", after=math.inf))
        return aside

    def _read(self) -> tuple[list[Entry], str]:
        if not self._path.exists():
            if self._head.exists():
                raise LedgerError(f"{self._path}: is not there, and {self._head.name} knows of lines in it")
            return [], ""
        with self._turn() as base:
            lines, last = self._verified(base)
            base.execute("COMMIT")
        return [entry_of(line) for line in lines], last

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """The ledger, while no other process reads or writes it; what is not committed is undone."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None)) as base:
                base.execute("PRAGMA synchronous=EXTRA")
                base.execute("BEGIN IMMEDIATE")
                for statement in _TABLE:
                    base.execute(statement)
                yield base
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self._path}: {error}") from None

    def _verified(self, base: sqlite3.Connection) -> tuple[list[str], str]:
        """Every line and the last hash; a line that is in a head alone is added."""
        lines: list[str] = []
        hashes = [""]
        for number, line, found in base.execute("SELECT number, line, hash FROM entries ORDER BY number"):
            if number != len(lines) + 1:
                raise LedgerError(f"ledger: entry {len(lines) + 1} is missing")
            if found != chained(hashes[-1], line):
                raise LedgerError(f"ledger: entry {number} was altered")
            lines.append(line)
            hashes.append(found)
        heads = self._heads()
        if not heads and not lines:
            return lines, ""
        if self._head not in heads:
            raise LedgerError(f"{self._head}: is not there; without it nobody can tell whether lines were taken away")
        newest = max(heads.values(), key=lambda head: head.number)
        if newest.number == len(lines) + 1 and newest.hash == chained(hashes[-1], newest.line):
            _insert(base, newest)  # the machine died between head and table
            # Now, or a second death, with the next line's head written, would leave the head two lines ahead of the table.
            base.execute("COMMIT")
            base.execute("BEGIN IMMEDIATE")
            return self._verified(base)
        for path, head in heads.items():
            _compare(path, head, hashes)
        self._complete(heads[self._head], newest, len(lines))
        return lines, hashes[-1]

    def _heads(self) -> dict[Path, Head]:
        paths = (self._head, *self._others)
        return {path: head for path in paths if (head := read_head(path, self._private)) is not None}

    def _complete(self, head: Head, newest: Head, count: int) -> None:
        """Let the head name the last line where the machine died between two heads; LedgerError where it is older than that."""
        if head.number == count:
            return
        if (head.number, newest.number) != (count - 1, count):
            text = f"knows of {head.number} entries, the ledger holds {count}; was an old copy of it restored?"
            raise LedgerError(f"{self._head}: {text}")
        write_head(self._head, newest, self._private)


def _compare(path: Path, head: Head, hashes: list[str]) -> None:
    """LedgerError unless the ledger holds the line that the head names."""
    count = len(hashes) - 1
    if head.number > count:
        lost = f"entries {count + 1} to {head.number} are" if head.number > count + 1 else f"entry {head.number} is"
        raise LedgerError(f"ledger: {lost} missing, {path.name} knows of them; was an old backup restored?")
    if not head.number > 0 or hashes[head.number] != head.hash:
        raise LedgerError(f"ledger: entry {head.number} is not the one that {path.name} knows")


def _insert(base: sqlite3.Connection, head: Head) -> None:
    base.execute("INSERT INTO entries VALUES (?, ?, ?)", (head.number, head.line, head.hash))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
