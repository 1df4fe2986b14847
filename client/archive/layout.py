"""What all archives of pictures with CSV files have in common: rows name pictures, and say whose each is and what is marked in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from client.archive.labels import LabelRow, Marks
from client.archive.settings import LabelSettings
from client.archive.sources import DicomTree, Facts, Item, LocalSource, SourceLost
from cxrbase_model.settings import SettingsError

PICTURES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


@dataclass(frozen=True)
class Named:
    """One CSV row: how it names its picture, and what it says."""

    name: str
    facts: Facts
    marks: Marks


class Layout(LocalSource, ABC):
    """A `Source` whose CSV files say whose each picture is and what is marked in it."""

    strict: ClassVar[bool] = True  # whether a name of no known vocabulary is an error

    def __init__(self, top: Path, labels: LabelSettings) -> None:
        self.top, self.settings = top, labels
        self._tree = DicomTree(top)
        self._marks: dict[str, Marks] = {}

    @abstractmethod
    def rows(self) -> Iterator[Named]:
        """Every CSV row; SettingsError where a file or column is missing."""

    def name_of(self, key: str) -> str:
        """By which of its parts a picture's key is found among the rows: here the file's name."""
        return PurePosixPath(key.split("!")[-1]).name

    def items(self) -> Iterator[Item]:
        """Every picture file with what the rows say of it; SourceLost where the folder is not there."""
        if not self.present():
            raise SourceLost(
                f"archive.path: {self.top} is not there or cannot be listed; is it plugged in and mounted?"
            )
        rows = {row.name: row for row in self.rows()}
        self._marks.clear()
        for item in self._tree.items():
            if not item.key.lower().endswith(PICTURES):
                continue
            row = rows.get(self.name_of(item.key))
            if row and row.marks:
                self._marks[item.key] = row.marks
            yield replace(item, facts=row.facts if row else Facts(patient=""))

    def present(self) -> bool:
        """Whether the folder can still be listed."""
        return self._tree.present()

    def labels(self) -> Iterator[LabelRow]:
        """The marks of the pictures that `items` listed."""
        return (LabelRow("file", key, marks) for key, marks in self._marks.items())

    def tables(self, *patterns: str) -> list[Path]:
        """The CSV files that match, plain or gzip; SettingsError where none does."""
        found = sorted(path for pattern in patterns for end in ("", ".gz") for path in self.top.glob(pattern + end))
        if not found:
            raise SettingsError(
                f"archive.path: {self.top} holds no {' or '.join(patterns)}; is it the data set's top folder?"
            )
        return found


def need(path: Path, row: dict[str, str], *columns: str) -> None:
    """SettingsError where a row of a CSV file lacks a column."""
    for column in columns:
        if column not in row:
            raise SettingsError(f"{path}: has no column {column!r}; its columns: {', '.join(row)}")
