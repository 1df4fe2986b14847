"""Where pictures come from: a source lists items, an item is read in a worker process.

A source never opens a picture while it lists; what it knows of a file is its size and when it changed, so that an archive
that was ingested before is listed in seconds.
"""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

from client.archive.reasons import Excluded, Reason


class SourceLost(OSError):
    """The archive as a whole is not there: unplugged, unmounted or never there. Says which setting to look at, not what was read."""


@dataclass(frozen=True)
class Facts:
    """What a CSV beside the pictures says of one, for pictures without a DICOM header; empty where it says nothing."""

    patient: str
    view: str = ""  # AP, PA, LATERAL, ... as in (0018,5101) View Position
    sex: str = ""
    age: str = ""  # in years
    scanner: str = ""


@dataclass(frozen=True)
class Item:
    """One file of an archive, or one member of a zip file.

    `key` names it in the hospital's manifest and is the same in each listing, such as the path below the archive's top; a zip's
    member is `archive.zip!member`. `changed` is a time in nanoseconds, or any number that is another one for another content.
    """

    key: str
    size: int
    changed: int
    path: Path
    member: str = ""
    facts: Facts | None = None

    def read(self, limit: int) -> bytes:
        """The bytes; Excluded(TOO_LARGE) above `limit` bytes, whatever size was declared; OSError where it cannot be read."""
        if self.size > limit:
            raise Excluded(Reason.TOO_LARGE)
        try:
            with self.open() as file:
                data = file.read(limit + 1)
        except _BAD_MEMBER:
            raise Excluded(Reason.UNREADABLE) from None
        if len(data) > limit:
            raise Excluded(Reason.TOO_LARGE)
        return data

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file or zip member, open for reading; a damaged zip raises one of several errors, see `_BAD_MEMBER`."""
        if not self.member:
            with self.path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                yield member


# what zipfile raises for a damaged member, an unknown compression, a missing password, a member that is gone
_BAD_MEMBER = (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, zlib.error, lzma.LZMAError)


class Source(Protocol):
    """An archive that can be listed."""

    def items(self) -> Iterator[Item]:
        """Every file, in any order; SourceLost where the archive is not there."""
        ...

    def present(self) -> bool:
        """Whether the archive is still there; asked when a file of it cannot be read."""
        ...

    def fetch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those of the listed items that can be read now, in an order of the source's own."""
        ...

    def done(self, items: Iterable[Item]) -> None:
        """These items need not be read again."""
        ...

    def close(self) -> None:
        """Let go of what the source holds."""
        ...

    @property
    def failures(self) -> Mapping[Any, int]:
        """What could not be listed or fetched, counted by code; another ingest tries it again."""
        ...


class LocalSource:
    """What sources have in common whose files can be read where they are."""

    failures: Mapping[Any, int] = MappingProxyType({})

    def fetch(self, items: Iterable[Item]) -> Iterator[Item]:
        """All items, as they come."""
        return iter(items)

    def done(self, items: Iterable[Item]) -> None:
        """Nothing: the files are the archive's."""

    def close(self) -> None:
        """Nothing is held."""


class DicomTree(LocalSource):
    """Every file below a folder, whatever its name, and the members of its zip files; links are followed, loops are not."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def items(self) -> Iterator[Item]:
        """Every regular file and zip member; SourceLost where the top is not there."""
        if self.top.is_file():
            yield from _file_items(self.top, self.top.name)
            return
        if not self.present():
            raise SourceLost(
                f"archive.path: {self.top} is not there or cannot be listed; is it plugged in and mounted?"
            )
        for path in walk(self.top):
            yield from _file_items(path, path.relative_to(self.top).as_posix())

    def present(self) -> bool:
        """Whether the top can still be listed."""
        if self.top.is_file():
            return True
        try:
            with os.scandir(self.top) as entries:
                next(entries, None)
        except OSError:
            return False
        return True


def walk(top: Path) -> Iterator[Path]:
    """Regular files below a folder, each real folder entered once."""
    seen = set()
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_listing_failed):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in files)


def _listing_failed(error: OSError) -> None:
    raise SourceLost(
        f"archive: a folder of it cannot be listed ({error.strerror}); is it plugged in, mounted and readable?"
    )


def _file_items(path: Path, key: str) -> Iterator[Item]:
    try:
        status = path.stat()
    except OSError:  # a dangling link, or gone since it was listed
        return
    if not stat.S_ISREG(status.st_mode):
        return
    if path.suffix.lower() == ".zip":
        yield from _zip_items(path, key, status)
    else:
        yield Item(key, status.st_size, status.st_mtime_ns, path)


def _zip_items(path: Path, key: str, status: os.stat_result) -> Iterator[Item]:
    """The members of a zip file; the file itself where it is none, to be excluded as unreadable."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        yield Item(key, status.st_size, status.st_mtime_ns, path)
        return
    for member in members:
        if not member.is_dir():
            yield Item(f"{key}!{member.filename}", member.file_size, member.CRC, path, member.filename)
