"""Files that only their owner may read, and that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Seconds since the last byte of a temporary file; by time, for other containers' processes cannot be seen.
_ABANDONED = 3600.0


def private_folder(path: Path) -> Path:
    """Make a folder, its parents too, that only the owner may enter (0700)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def open_private(path: Path, flags: int) -> BinaryIO:
    """Open a file for writing that only the owner may read and write (0600)."""
    handle = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "r+b" if flags & os.O_RDWR else "wb")


def write_private(path: Path, *data: bytes | bytearray | memoryview, durable: bool = True) -> None:
    """Write a file that is there whole or not at all: temporary file, fsync, rename, fsync of the folder.

    data: one piece after the other. durable: false leaves out both fsync, for what may be lost in a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open_private(temporary, os.O_WRONLY | os.O_TRUNC) as file:
            file.writelines(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that died while they were in `write_private` have left in a folder; a write that goes on is newer."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs; gives False where another process holds it, or waits for it. The system frees it at any death."""
    import fcntl

    with open_private(path, os.O_RDWR) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
