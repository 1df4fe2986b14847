"""The end of an ingest: from the manifest and the labels to a new valid cache, the list of exclusions and the local review."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.archive.cache import Shard, append_pictures, checksum, shard_name, shard_rows, write_cache
from client.archive.identity import KEY_BYTES, SPLITS, Secret
from client.archive.labelbook import LabelBook
from client.archive.manifest import Entry, Manifest
from client.archive.reasons import Reason
from client.archive.review import Review, page
from client.site import Site
from cxrbase_model.files import write_private
from cxrbase_model.labels import prevalence
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import canonical, read

Table = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Summary:
    """What an ingest did, for the hospital's own eyes: exact counts."""

    used: int
    patients: int
    splits: dict[str, int]
    excluded: dict[str, int]
    findings: dict[str, dict[str, int]]
    labelled: int
    unmatched: int  # label rows that no used picture belongs to
    new: int = 0  # files read
    unchanged: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)  # what could not be listed or fetched, by code


def finish(
    site: Site, spec: DataSpec, manifest: Manifest, secret: Secret, book: LabelBook | None = None, forgotten: int = 0
) -> Summary:
    """Make what the manifest knows the valid cache. Doing it again, or after it was interrupted, gives the same.

    book: the labels; without it those of the last time stay. forgotten: files left out since their patient asked for it.
    """
    with manifest.transaction():
        manifest.decide()
        manifest.drop_unused()
    compact(site.cache_folder, manifest, spec.image_size)
    used = manifest.used()
    shards = list(_checked_shards(site.cache_folder, manifest, spec.image_size))
    labels, unmatched = _labels(used, spec, manifest, book)
    table = _table(used, labels, {number: index for index, (number, _) in enumerate(shards)}, secret, spec)
    excluded = {reason: count for reason, count in manifest.counts().items() if reason}
    if forgotten:
        excluded[Reason.FORGOTTEN] = forgotten
    shape = (spec.image_size, spec.image_size)
    write_cache(site.cache_folder, spec, shape, [shard for _, shard in shards], table, excluded)
    write_private(site.private / "exclusions.csv", _exclusions(manifest))
    summary = _summary(table, spec, excluded, unmatched)
    write_private(site.private / "ingest.html", _review(site, spec, manifest, used, labels, summary).encode())
    return summary


def recorded_spec(manifest: Manifest) -> DataSpec | None:
    """The data specification of the last finished ingest."""
    text = manifest.fact("spec", "")
    return read(DataSpec, json.loads(text)) if text else None


def _labels(
    used: list[Entry], spec: DataSpec, manifest: Manifest, book: LabelBook | None
) -> tuple[NDArray[np.float32], int]:
    """The labels of the used pictures, and how many label rows belong to none; what is new of them is noted in the manifest."""
    if book is None:
        unknown = np.full(len(spec.findings), np.nan, np.float32).tobytes()
        noted = b"".join(entry.labels or unknown for entry in used)
        return np.frombuffer(noted, np.float32).reshape(len(used), len(spec.findings)), 0
    labels, matched = book.labels(used)
    rows = zip(used, (row.tobytes() for row in labels), strict=True)
    with manifest.transaction():
        manifest.note_labels((row, entry.name) for entry, row in rows if row != entry.labels)
        manifest.set_fact("spec", canonical(spec))
    return labels, len(book) - matched


def next_shard(folder: Path, numbers: Iterable[int]) -> int:
    """A shard number that neither the manifest nor the folder has, so that no shard of the valid cache is written over."""
    there = [int(path.stem.split("-")[1]) for path in folder.glob("pixels-*.u8")]
    return max([0, *there, *numbers]) + 1


def compact(folder: Path, manifest: Manifest, side: int) -> None:
    """Rewrite each shard that holds pixels no file of the manifest has any more, without them.

    The new shards are on disk before one transaction points at them; the old ones go when the next cache.json is written.
    """
    live = manifest.live_counts()
    for number, (rows, _) in manifest.shards().items():
        if live.get(number, 0) == rows:
            continue
        slots = manifest.live_slots(number)
        fresh = next_shard(folder, manifest.shards())
        if slots:
            append_pictures(
                folder / shard_name(fresh), 0, _pictures(folder / shard_name(number), slots, side), side * side
            )
        with manifest.transaction():
            manifest.move((fresh, place, name) for place, (name, _) in enumerate(slots))
            manifest.drop_shard(number)
            if slots:
                manifest.set_shard(fresh, len(slots))


def _pictures(path: Path, slots: list[tuple[str, int]], side: int) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        for _, slot in slots:
            file.seek(slot * side * side)
            yield np.frombuffer(file.read(side * side), np.uint8)


def _checked_shards(folder: Path, manifest: Manifest, side: int) -> Iterator[tuple[int, Shard]]:
    """Every shard with its checksum; those of full shards are computed once."""
    for number, (rows, sha256) in manifest.shards().items():
        if not sha256:
            sha256 = checksum(folder / shard_name(number), rows * side * side)
            if rows == shard_rows(side, side):
                manifest.set_shard(number, rows, sha256)
        yield number, Shard(shard_name(number), rows, sha256)


def _table(
    used: list[Entry], labels: NDArray[np.float32], places: dict[int, int], secret: Secret, spec: DataSpec
) -> Table:
    keys = [entry.patient or b"\0" * KEY_BYTES for entry in used]
    table: Table = {
        "labels": labels,
        "patient": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
        "split": np.array([secret.split(key, spec) for key in keys], np.uint8),
        "shard": np.array([places[entry.shard or 0] for entry in used], np.uint32),
        "slot": np.array([entry.slot or 0 for entry in used], np.uint32),
    }
    for name in ("sex", "age_band", "view", "scanner"):
        table[name] = np.array([getattr(entry, name) for entry in used], np.uint8)
    return table


def _exclusions(manifest: Manifest) -> bytes:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "reason", "meaning"])
    writer.writerows([name, reason, Reason(reason).description] for name, reason in manifest.excluded())
    return text.getvalue().encode("utf-8", "surrogateescape")


def _review(
    site: Site, spec: DataSpec, manifest: Manifest, used: list[Entry], labels: NDArray[np.float32], summary: Summary
) -> str:
    def picture_of(entry: Entry) -> NDArray[np.uint8]:
        path = site.cache_folder / shard_name(entry.shard or 0)
        (picture,) = _pictures(path, [(entry.name, entry.slot or 0)], spec.image_size)
        return picture.reshape(spec.image_size, spec.image_size)

    review = Review(
        site=site.site,
        side=spec.image_size,
        used=used,
        labels=labels,
        findings=summary.findings,
        splits=summary.splits,
        patients=summary.patients,
        labelled=summary.labelled,
        unmatched=summary.unmatched,
        excluded=summary.excluded,
        left_out=manifest.excluded(),
    )
    return page(review, picture_of)


def _summary(table: Table, spec: DataSpec, excluded: dict[str, int], unmatched: int) -> Summary:
    labels, splits = table["labels"], table["split"]
    return Summary(
        used=len(splits),
        patients=len(np.unique(table["patient"], axis=0)),
        splits={name: int((splits == code).sum()) for code, name in enumerate(SPLITS)},
        excluded=dict(sorted(excluded.items(), key=lambda one: -one[1])),
        findings=prevalence(labels, spec.findings),
        labelled=int(np.isfinite(labels).any(axis=1).sum()),
        unmatched=unmatched,
    )
