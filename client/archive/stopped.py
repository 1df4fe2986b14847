"""Why an ingest cannot go on."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = "the disk of the private folder is full; make room and run again: it goes on, and the last complete cache is still valid"


class IngestStopped(RuntimeError):
    """The ingest cannot go on; the text says why and what to do. What was committed stays, and so does the last cache."""


@contextmanager
def full_disk_is_told() -> Iterator[None]:
    """Turn the ways in which a full disk shows into one clear stop."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise IngestStopped(_FULL) from None
    except sqlite3.OperationalError as error:
        if "full" not in str(error) and "I/O" not in str(error):
            raise
        raise IngestStopped(_FULL) from None
