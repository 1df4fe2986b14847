"""Pictures to shards: each goes to the last shard while there is room, and the entries of the manifest learn where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.archive import finish
from client.archive.cache import append_pictures, shard_name, shard_rows
from client.archive.manifest import Entry

Pending = tuple[Entry, NDArray[np.uint8] | None]  # an entry, and its picture where it has one


def write_pictures(
    folder: Path, shards: Mapping[int, tuple[int, str]], pending: Iterable[Pending]
) -> tuple[list[Entry], dict[int, int]]:
    """Append pictures to the shards of a cache folder; gives the entries with their places, and the rows of each shard that grew.

    shards: number to rows and digest of those that the manifest knows. What is written beyond those counts for nothing until the
    manifest is told.
    """
    pending = list(pending)
    pictures = [(entry, picture) for entry, picture in pending if picture is not None]
    placed = [entry for entry, picture in pending if picture is None]
    counts: dict[int, int] = {}
    while pictures:
        height, width = pictures[0][1].shape
        full = shard_rows(height, width)
        number, rows = _open_shard(folder, shards, counts, full)
        chunk, pictures = pictures[: full - rows], pictures[full - rows :]
        counts[number] = append_pictures(
            folder / shard_name(number), rows, (picture for _, picture in chunk), height * width
        )
        placed += [replace(entry, shard=number, slot=rows + index) for index, (entry, _) in enumerate(chunk)]
    return placed, counts


def _open_shard(
    folder: Path, shards: Mapping[int, tuple[int, str]], counts: Mapping[int, int], full: int
) -> tuple[int, int]:
    """Number and rows of the shard that the next picture goes to."""
    last = max([*shards, *counts], default=0)
    rows = counts.get(last, shards.get(last, (full, ""))[0])
    if last and rows < full:
        return last, rows
    return finish.next_shard(folder, [*shards, *counts]), 0
