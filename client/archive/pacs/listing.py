"""The book of what a PACS was found to have, so that only studies that have grown are looked into again.

It knows studies and pictures by their HMACs only. It is no more than a memory: where it is lost or damaged, everything
is asked again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from cxrbase_model.files import open_private

_VERSION = 1
_TABLES = """
CREATE TABLE studies (study BLOB PRIMARY KEY, scope TEXT NOT NULL, instances INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pictures (study BLOB NOT NULL, picture TEXT NOT NULL, PRIMARY KEY (study, picture)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Known:
    """A study as it was: its number of pictures by the PACS's count, and the keys of those that the settings take."""

    instances: int
    pictures: list[str]


class Listing:
    """The book, a SQLite file that only the owner may read; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # a full disk or a lock, not damage
                raise
            path.unlink()
            self._db = _open(path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, study: bytes, scope: str) -> Known | None:
        """What is known of a study under the same filters (`scope`)."""
        with self._lock:
            row = self._db.execute(
                "SELECT instances FROM studies WHERE study = ? AND scope = ?", (study, scope)
            ).fetchone()
            if row is None:
                return None
            pictures = self._db.execute("SELECT picture FROM pictures WHERE study = ? ORDER BY picture", (study,))
            return Known(int(row[0]), [str(name) for (name,) in pictures])

    def put(self, study: bytes, scope: str, known: Known) -> None:
        """Replace what is known of a study."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM pictures WHERE study = ?", (study,))
            self._db.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?)", (study, scope, known.instances))
            self._db.executemany("INSERT INTO pictures VALUES (?, ?)", ((study, picture) for picture in known.pictures))


def _open(path: Path) -> sqlite3.Connection:
    open_private(path, os.O_RDWR).close()  # made owner-only before SQLite opens it
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous=OFF")  # losing it costs time only
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version != _VERSION:
            with db:
                db.executescript("DROP TABLE IF EXISTS studies; DROP TABLE IF EXISTS pictures;" + _TABLES)
                db.execute(f"PRAGMA user_version={_VERSION}")
    except BaseException:
        db.close()
        raise
    return db
