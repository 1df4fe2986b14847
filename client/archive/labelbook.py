"""The labels of an archive as vectors, found again by the keys that the manifest has of each picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from client.archive.identity import Secret
from client.archive.labels import LabelRow, label_columns, read_labels
from client.archive.layout import Layout
from client.archive.manifest import Entry
from client.archive.sources import Source
from client.site import Site
from cxrbase_model.labels import UNCERTAIN_VALUES, UnknownFinding, Vocabulary
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError

Vector = NDArray[np.float32]


class LabelBook:
    """Label vectors by key. Of identifiers it holds what the manifest holds, HMACs; of files their names."""

    def __init__(self, vocabulary: Vocabulary, uncertain: str, secret: Secret) -> None:
        self._vocabulary, self._uncertain, self._secret = vocabulary, uncertain, secret
        self._vectors: dict[tuple[str, bytes | str], Vector] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def add(self, row: LabelRow) -> None:
        """Take a row; of two rows for one key that disagree, what they disagree on is uncertain."""
        key = (row.by, row.key if row.by == "file" else self._secret.key(row.by, row.key))
        vector = self._vocabulary.encode(row.marks, self._uncertain)
        known = self._vectors.get(key)
        if known is not None:
            doubt = np.where(known == vector, known, np.float32(UNCERTAIN_VALUES[self._uncertain]))
            vector = np.where(np.isnan(known), vector, np.where(np.isnan(vector), known, doubt)).astype(np.float32)
        self._vectors[key] = vector

    def labels(self, entries: list[Entry]) -> tuple[Vector, int]:
        """The labels of pictures, float32 [N, C] with NaN where nothing is said, and how many keys of the book were met."""
        labels = np.full((len(entries), len(self._vocabulary.findings)), np.nan, np.float32)
        names = Counter(part for entry in entries for part in _short_names(entry.name))
        met = set()
        for row, entry in enumerate(entries):
            for key in self._keys(entry, names):
                if key in self._vectors:
                    labels[row] = self._vectors[key]
                    met.add(key)
                    break
        return labels, len(met)

    def _keys(self, entry: Entry, names: Counter[str]) -> Iterator[tuple[str, bytes | str]]:
        """By what a picture may be found: its UID, its file, a part of the file's name that no other has, its accession."""
        if entry.uid:
            yield "uid", entry.uid
        yield "file", entry.name
        yield from (("file", name) for name in _short_names(entry.name) if names[name] == 1)
        if entry.accession:
            yield "accession", entry.accession


def load_labels(site: Site, spec: DataSpec, source: Source, secret: Secret) -> LabelBook:
    """Read all labels of a site; SettingsError for a file, a name or a cell that is not understood."""
    strict = source.strict if isinstance(source, Layout) else True
    try:
        vocabulary = Vocabulary(spec.findings, site.labels.names, site.labels.ignore, strict=strict)
        book = LabelBook(vocabulary, spec.uncertain, secret)
        if site.labels.file is not None:
            for name in label_columns(site.labels.file, site.labels):
                vocabulary.column(name)
        for row in _rows(site, source):
            if row.key:
                book.add(row)
    except UnknownFinding as error:
        raise SettingsError(str(error)) from None
    return book


def _rows(site: Site, source: Source) -> Iterator[LabelRow]:
    if site.labels.file is not None:
        yield from read_labels(site.labels.file, site.labels)
    elif isinstance(source, Layout):
        yield from source.labels()


def _short_names(name: str) -> set[str]:
    """The file's name without folders, with and without its ending."""
    path = PurePosixPath(name.split("!")[-1])
    return {path.name, path.stem} - {name}
