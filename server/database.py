"""The SuperLink's database: how it is laid out, and how long a request waits for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

_PAGE_BYTES = 1 << 16  # the most that SQLite has; 4096 is usual
_WAIT = 25_000  # milliseconds; Flower's SuperNode repeats a request after 30 s without an answer


def lay_out(database: Path) -> None:
    """Make an empty database with large pages; one that is there stays as it is.

    Pieces of messages are blobs of megabytes, which SQLite cuts into pages: to store and delete 100 MB takes 0.17 s of processor time,
    and 0.43 s with pages of the usual size. OSError or sqlite3.Error where the file cannot be made.
    """
    if not database.exists():
        with closing(sqlite3.connect(database)) as made:
            made.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            made.execute("VACUUM")  # which writes the first page


def patient(pragmas: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Flower's settings of each connection to its database, with 25 s in place of 5 for another request's writing to end.

    Who has waited for so long is answered "database is locked", and Flower gives up the update or the heartbeat that it was about: with
    eight hospitals that send 400 MB each at the same time to a machine with two cores, stock Flower lost updates.
    """
    return (*((name, value) for name, value in pragmas if name != "busy_timeout"), ("busy_timeout", str(_WAIT)))
