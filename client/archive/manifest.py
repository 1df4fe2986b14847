"""The hospital's own book of its archive: every file, used or excluded with a reason. It never leaves the private folder.

A file is *prepared* once, by a worker: its pixels lie in a shard, or it has a reason. Which prepared pictures are *used* is
decided at the end of each ingest from the whole book, so that it depends neither on the order of work nor on interruptions:
of pictures with one SOP Instance UID, and of those with equal pixels, the one with the smallest row key is used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.archive.reasons import Reason
from cxrbase_model.files import open_private

SCHEMA = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, sha256 TEXT);
CREATE TABLE IF NOT EXISTS forgotten (patient BLOB PRIMARY KEY);
CREATE TABLE IF NOT EXISTS files (
  name TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL, facts TEXT NOT NULL,
  prepared TEXT NOT NULL, final TEXT NOT NULL,
  row_key BLOB, uid BLOB, accession BLOB, patient BLOB, pixels BLOB,
  shard INTEGER, slot INTEGER,
  sex INTEGER, age_band INTEGER, view INTEGER, scanner INTEGER, device TEXT, height INTEGER, width INTEGER, labels BLOB
);
CREATE INDEX IF NOT EXISTS files_patient ON files (patient);
"""


@dataclass(frozen=True)
class Entry:
    """One file in the book. `prepared` and `final` are reason codes, empty where there is none; keys are HMACs or None."""

    name: str
    size: int
    changed: int
    facts: str
    prepared: str
    final: str = ""
    row_key: bytes | None = None
    uid: bytes | None = None
    accession: bytes | None = None
    patient: bytes | None = None
    pixels: bytes | None = None
    shard: int | None = None
    slot: int | None = None
    sex: int = 0
    age_band: int = 0
    view: int = 0
    scanner: int = 0
    device: str = ""
    height: int = 0
    width: int = 0
    labels: bytes | None = None


_COLUMNS = tuple(Entry.__dataclass_fields__)


class ManifestError(ValueError):
    """The manifest cannot be used: damaged, of another version, or made with another secret."""


class Manifest:
    """The book in `private`/manifest.sqlite; every change is a transaction that survives a power cut."""

    def __init__(self, path: Path) -> None:
        open_private(path, 0o2).close()  # O_RDWR: made owner-only before SQLite opens it
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")  # what is forgotten is overwritten, not only unlinked
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            if "full" in str(error) or "I/O" in str(error):
                raise
            raise ManifestError(
                "manifest.sqlite is not readable; move it away and run cxrbase-client ingest again"
            ) from None
        if self.fact("schema", str(SCHEMA)) != str(SCHEMA):
            raise ManifestError(
                "manifest.sqlite is of another version; move it away and run cxrbase-client ingest again"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block, or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def fact(self, name: str, default: str) -> str:
        """A remembered text; `default` is remembered where there was none."""
        self._db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, default))
        return str(self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])

    def set_fact(self, name: str, value: str) -> None:
        """Remember a text."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def start_over(self) -> None:
        """Forget all files and shards; who asked to be forgotten stays so."""
        self._db.execute("DELETE FROM files")
        self._db.execute("DELETE FROM shards")

    def prints(self) -> dict[str, tuple[int, int, str]]:
        """Of every file size, change and facts, by which an unchanged one is known; gone ones are left out."""
        rows = self._db.execute("SELECT name, size, changed, facts FROM files WHERE prepared != ?", (Reason.GONE,))
        return {name: (size, changed, facts) for name, size, changed, facts in rows}

    def put(self, entries: Iterable[Entry]) -> None:
        """Add or replace files."""
        marks = ", ".join("?" * len(_COLUMNS))
        rows = ([getattr(entry, column) for column in _COLUMNS] for entry in entries)
        self._db.executemany(f"INSERT OR REPLACE INTO files ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)

    def mark_gone(self, names: Iterable[str]) -> None:
        """Note files that are no longer in the archive; their pixels will be dropped."""
        self._db.executemany(
            "UPDATE files SET prepared = ?, shard = NULL, slot = NULL WHERE name = ?",
            ((Reason.GONE, name) for name in names),
        )

    def decide(self) -> None:
        """Decide which prepared pictures are used: no copies by SOP Instance UID, then none by pixels."""
        self._db.execute("UPDATE files SET final = prepared")
        for column, reason in (("uid", Reason.DUPLICATE_UID), ("pixels", Reason.DUPLICATE_PIXELS)):
            self._db.execute(
                f"UPDATE files SET final = ? WHERE name IN (SELECT name FROM (SELECT name, ROW_NUMBER() OVER "
                f"(PARTITION BY {column} ORDER BY row_key, name) AS place FROM files WHERE final = '' AND {column} IS NOT NULL) "
                f"WHERE place > 1)",
                (reason,),
            )

    def drop_unused(self) -> None:
        """Let go of the pixels of every file that is not used."""
        self._db.execute("UPDATE files SET shard = NULL, slot = NULL WHERE final != '' AND shard IS NOT NULL")

    def pictureless(self) -> set[str]:
        """Files that are used now and whose pixels were let go of: copies of a file that has gone since."""
        return {str(row[0]) for row in self._db.execute("SELECT name FROM files WHERE final = '' AND shard IS NULL")}

    def used(self) -> list[Entry]:
        """The used pictures in the order of their row keys."""
        return self._entries("WHERE final = '' ORDER BY row_key, name")

    def note_labels(self, labels: Iterable[tuple[bytes, str]]) -> None:
        """Note the label vectors, as bytes, of files."""
        self._db.executemany("UPDATE files SET labels = ? WHERE name = ?", labels)

    def excluded(self) -> Iterator[tuple[str, str]]:
        """Name and reason code of every file that is not used."""
        yield from self._db.execute("SELECT name, final FROM files WHERE final != '' ORDER BY final, name")

    def counts(self) -> dict[str, int]:
        """How many files have each final reason; the empty one counts the used."""
        return dict(self._db.execute("SELECT final, COUNT(*) FROM files GROUP BY final"))

    def of_patient(self, patient: bytes) -> list[Entry]:
        """Every file of a patient."""
        return self._entries("WHERE patient = ?", patient)

    def remove(self, names: Iterable[str]) -> None:
        """Take files out of the book."""
        self._db.executemany("DELETE FROM files WHERE name = ?", ((name,) for name in names))

    def shards(self) -> dict[int, tuple[int, str]]:
        """Number of each shard to its rows and checksum, empty where it is not known yet."""
        rows = self._db.execute("SELECT number, rows, COALESCE(sha256, '') FROM shards ORDER BY number")
        return {number: (count, sha256) for number, count, sha256 in rows}

    def set_shard(self, number: int, rows: int, sha256: str = "") -> None:
        """Note how many rows of a shard count, and their checksum where it is known."""
        self._db.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (number, rows, sha256 or None))

    def drop_shard(self, number: int) -> None:
        """Take a shard out of the book."""
        self._db.execute("DELETE FROM shards WHERE number = ?", (number,))

    def live_slots(self, shard: int) -> list[tuple[str, int]]:
        """Name and slot of each file whose pixels lie in a shard, by slot."""
        rows = self._db.execute("SELECT name, slot FROM files WHERE shard = ? ORDER BY slot", (shard,))
        return [(str(name), int(slot)) for name, slot in rows]

    def live_counts(self) -> dict[int, int]:
        """How many files have their pixels in each shard."""
        return dict(self._db.execute("SELECT shard, COUNT(*) FROM files WHERE shard IS NOT NULL GROUP BY shard"))

    def move(self, places: Iterable[tuple[int, int, str]]) -> None:
        """Note new (shard, slot) of files."""
        self._db.executemany("UPDATE files SET shard = ?, slot = ? WHERE name = ?", places)

    def forgotten(self) -> set[bytes]:
        """Keys of the patients who asked to be forgotten."""
        return {bytes(row[0]) for row in self._db.execute("SELECT patient FROM forgotten")}

    def forget(self, patient: bytes) -> None:
        """Remember that a patient is not to be taken again."""
        self._db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (patient,))

    def vacuum(self) -> None:
        """Rewrite the file, so that nothing of removed rows is left in it."""
        self._db.execute("VACUUM")

    def _entries(self, where: str, *values: object) -> list[Entry]:
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM files {where}", values)
        return [Entry(*row) for row in rows]
