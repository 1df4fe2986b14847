"""The hospital's label CSV: rows keyed by SOP Instance UID, accession number or file, in columns or in a list, to marks.

Three habits are understood: one column per finding with a word in each cell (1/0/-1, P/N/U, ...), a list of what is there in
one column (`Effusion|Nodule?`), and either of them keyed by the picture or by the study.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from client.archive.settings import LabelSettings
from cxrbase_model.labels import Mark
from cxrbase_model.settings import SettingsError

Marks = dict[str, Mark]


@dataclass(frozen=True)
class LabelRow:
    """What the hospital says of one picture or study: `by` tells what `key` is (uid, accession or file)."""

    by: str
    key: str
    marks: Marks


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV, plain or gzip, as mappings from the header's names; SettingsError where it is not one."""
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            reader = csv.DictReader(TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise SettingsError(f"{path}: line {reader.line_num} has another number of cells than the header")
                yield row
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror or 'not a gzip file'})") from None
    except (csv.Error, UnicodeDecodeError, EOFError):
        raise SettingsError(f"{path}: is not a CSV file in UTF-8") from None


def read_labels(path: Path, settings: LabelSettings) -> Iterator[LabelRow]:
    """The rows of a hospital's own label file; SettingsError names a column or a cell that is not understood."""
    by = key_type(settings)
    for line, row in enumerate(read_rows(path), start=2):
        for column in filter(None, (settings.key, settings.list)):
            if column not in row:
                raise SettingsError(f"{path}: has no column {column!r}; its columns: {', '.join(row)}")
        try:
            yield LabelRow(by, row[settings.key].strip(), marks_of(row, settings))
        except UnknownCell as error:
            raise SettingsError(f"{path}: line {line}, {error}") from None


def label_columns(path: Path, settings: LabelSettings) -> list[str]:
    """The columns of a file that has one per finding; none where the findings are listed."""
    if settings.list:
        return []
    first = next(read_rows(path), {})
    return [name for name in first if name != settings.key and name not in settings.ignore]


def key_type(settings: LabelSettings) -> str:
    """What the key column holds: uid, accession or file; by its name where the settings leave it open."""
    if settings.by != "auto":
        return settings.by
    name = settings.key.lower()
    return "accession" if "accession" in name else "uid" if "uid" in name else "file"


class UnknownCell(ValueError):
    """A cell that is none of the settings' words; the text names the column, not the cell, which may hold anything."""


def marks_of(row: Mapping[str, str], settings: LabelSettings) -> Marks:
    """The marks of one row, in a list or in columns as the settings say."""
    if settings.list:
        return listed_marks(row[settings.list], settings)
    return column_marks(((name, cell) for name, cell in row.items() if name != settings.key), settings)


def listed_marks(cell: str, settings: LabelSettings) -> Marks:
    """The marks of a list such as `Effusion|Nodule?`; what it leaves out is what `absent` says, an empty list says nothing."""
    marks: Marks = {}
    for part in cell.split(settings.separator):
        name = part.strip()
        doubtful = bool(settings.doubt) and name.endswith(settings.doubt)
        name = name.removesuffix(settings.doubt).strip() if doubtful else name
        if name.casefold() not in settings.missing:
            marks[name] = Mark.UNCERTAIN if doubtful else Mark.POSITIVE
    if marks and settings.absent == "negative":
        return dict.fromkeys(settings.names, Mark.NEGATIVE) | marks
    return marks


def column_marks(cells: Iterable[tuple[str, str]], settings: LabelSettings) -> Marks:
    """The marks of (column, cell) pairs; UnknownCell for a word the settings do not list."""
    words = _words(settings)
    ignored = set(settings.ignore)
    marks: Marks = {}
    for name, cell in cells:
        if name in ignored:
            continue
        word = _plain(cell)
        if word not in words:
            raise UnknownCell(f"column {name!r}: expected a word of labels.positive, negative, uncertain or missing")
        mark = words[word]
        if mark is not None:
            marks[name] = mark
    return marks


def _words(settings: LabelSettings) -> dict[str, Mark | None]:
    words: dict[str, Mark | None] = {_plain(word): None for word in settings.missing}
    for listed, mark in (
        (settings.positive, Mark.POSITIVE),
        (settings.negative, Mark.NEGATIVE),
        (settings.uncertain, Mark.UNCERTAIN),
    ):
        words |= {_plain(word): mark for word in listed}
    return words


def _plain(cell: str) -> str:
    """A cell without the differences that do not matter: case, spaces, and 1.0 for 1."""
    text = cell.strip().casefold()
    return text.removesuffix(".0")
