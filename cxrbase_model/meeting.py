"""Where processes of this machine find each other: a file in a folder that goes with its owner, or when the next one comes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX, _FILE = "cxrbase-meeting-", "meeting"
_YOUNG = 60.0  # seconds in which a folder may not be locked yet


@contextlib.contextmanager
def meeting_file() -> Iterator[Path]:
    """The path of a file that is not there yet, in a private folder that is removed at the end.

    An owner that was killed leaves its folder behind, and the next one removes it. That an owner lives is told by a lock on its
    folder, which the system frees at any death.
    """
    import fcntl

    _remove_left_behind()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(folder) / _FILE
        finally:
            os.close(handle)


def _remove_left_behind() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, another user's, or removed at this moment
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder of this user that nobody holds, and of its content the file alone; OSError where somebody does."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG:
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _FILE).unlink(missing_ok=True)
        folder.rmdir()
    finally:
        os.close(handle)
