"""The training cache on disk: pixels in plain uint8 shards, one table of labels and keys, one JSON that says what is valid.

    cache.json              schema, data specification, shards and table with their checksums, exclusion counts
    pixels-00001.u8 ...     uint8 pictures one after the other; only as many bytes as cache.json counts are valid
    table-<digest>.safetensors    one row a picture, see TABLE

Shards are only appended to and cache.json is replaced by one rename, so a reader sees a whole cache at any time, also while
an ingest runs or after it died. Row order is that of keys under the hospital's secret and says nothing about the archive.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from client.archive.identity import AGE_BANDS, KEY_BYTES, SCANNERS, SEXES, SPLITS
from cxrbase_model.files import open_private, private_folder, write_private
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError, digest, read, to_mapping

SCHEMA = 1
SHARD_BYTES = 64 << 20
VIEWS = ("unknown", "PA", "AP", "LATERAL", "OTHER")

TABLE: dict[str, tuple[str, str]] = {  # array -> dtype, meaning; nothing else is kept of a picture
    "labels": ("float32", "one column a finding: 1 present, 0 absent, 0.5 uncertain, NaN unknown"),
    "patient": ("uint8", f"HMAC-SHA256 of the patient's identifier under the hospital's secret, {KEY_BYTES} bytes"),
    "split": ("uint8", "train, validation or test; the same for all pictures of a patient"),
    "sex": ("uint8", ", ".join(SEXES)),
    "age_band": ("uint8", ", ".join(AGE_BANDS)),
    "view": ("uint8", ", ".join(VIEWS)),
    "scanner": ("uint8", "modality and maker out of a closed list"),
    "shard": ("uint32", "index of the shard that holds the picture"),
    "slot": ("uint32", "place of the picture in its shard"),
}
CODES = {"sex": SEXES, "age_band": AGE_BANDS, "view": VIEWS, "scanner": SCANNERS, "split": SPLITS}


class CacheError(ValueError):
    """The cache is missing, damaged, or of another version; the text names the file within the cache and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of pictures: its name, how many of them count, and the SHA-256 of those."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What cache.json says."""

    spec: DataSpec
    height: int
    width: int
    rows: int
    shards: tuple[Shard, ...]
    table: Shard
    exclusions: dict[str, int]

    def to_json(self) -> bytes:
        """The bytes of cache.json."""
        content = to_mapping(self) | {"schema": SCHEMA, "spec_digest": digest(self.spec)}
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_index(folder: Path) -> Index:
    """Read cache.json; CacheError where it is missing, of another version or not one."""
    path = folder / "cache.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CacheError("cache.json is not there; run cxrbase-client ingest first") from None
    except (ValueError, OSError):
        raise CacheError("cache.json cannot be read; run cxrbase-client ingest again") from None
    try:
        return _index(content)
    except (SettingsError, KeyError, TypeError, ValueError):
        raise CacheError("cache.json is not what this version writes; run cxrbase-client ingest again") from None


def _index(content: Any) -> Index:
    if content["schema"] != SCHEMA:
        raise ValueError("another schema")
    spec = read(DataSpec, content["spec"])
    if digest(spec) != content["spec_digest"]:
        raise ValueError("the digest is another one")
    shards = tuple(Shard(str(one["file"]), int(one["rows"]), str(one["sha256"])) for one in content["shards"])
    table = Shard(str(content["table"]["file"]), int(content["table"]["rows"]), str(content["table"]["sha256"]))
    exclusions = {str(reason): int(count) for reason, count in content["exclusions"].items()}
    return Index(spec, int(content["height"]), int(content["width"]), int(content["rows"]), shards, table, exclusions)


def read_table(folder: Path, index: Index) -> dict[str, NDArray[Any]]:
    """The arrays of TABLE, one row a picture; CacheError where the file is missing, altered or not of that shape."""
    try:
        data = (folder / index.table.file).read_bytes()
    except OSError:
        raise CacheError(f"{index.table.file} cannot be read; run cxrbase-client ingest again") from None
    if hashlib.sha256(data).hexdigest() != index.table.sha256:
        raise CacheError(f"{index.table.file} was altered after the ingest; run cxrbase-client ingest again")
    arrays: dict[str, NDArray[Any]] = load(data)
    for name, (dtype, _) in TABLE.items():
        if name not in arrays or arrays[name].dtype != dtype or len(arrays[name]) != index.rows:
            raise CacheError(f"{index.table.file} lacks a valid {name}; run cxrbase-client ingest again")
    return arrays


def write_cache(
    folder: Path, spec: DataSpec, shape: tuple[int, int], shards: Iterable[Shard], table: Mapping[str, NDArray[Any]],
    exclusions: Mapping[str, int],
) -> Index:  # fmt: skip
    """Write the table and then cache.json, which makes the new state the valid one; then remove what is no longer part of it."""
    if set(table) != set(TABLE):
        raise ValueError(f"table: expected the arrays {', '.join(TABLE)}; found {', '.join(table)}")
    data = save({name: np.ascontiguousarray(table[name]) for name in TABLE})
    checksum = hashlib.sha256(data).hexdigest()
    rows = len(table["patient"])
    entry = Shard(f"table-{checksum[:16]}.safetensors", rows, checksum)
    index = Index(spec, *shape, rows, tuple(shards), entry, dict(sorted(exclusions.items())))
    private_folder(folder)
    write_private(folder / entry.file, data)
    write_private(folder / "cache.json", index.to_json())
    remove_strays(folder, index)
    return index


def remove_strays(folder: Path, index: Index) -> None:
    """Remove every file of the folder that is not part of the cache."""
    known = {"cache.json", index.table.file, *(shard.file for shard in index.shards)}
    for path in folder.iterdir():
        if path.name not in known:
            path.unlink()


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"pixels-{number:05d}.u8"


def shard_rows(height: int, width: int) -> int:
    """How many pictures a shard takes."""
    return max(1, SHARD_BYTES // (height * width))


def append_pictures(path: Path, rows: int, pictures: Iterable[NDArray[np.uint8]], picture_bytes: int) -> int:
    """Write pictures behind the first `rows` of a shard and force them to disk; bytes left there by a killed ingest are cut off."""
    with open_private(path, os.O_RDWR) as file:
        if file.seek(0, os.SEEK_END) < rows * picture_bytes:
            raise CacheError(f"{path.name} is shorter than it was; run cxrbase-client ingest --again")
        file.truncate(rows * picture_bytes)
        file.seek(rows * picture_bytes)
        for picture in pictures:
            file.write(picture.tobytes())
            rows += 1
        file.flush()
        os.fsync(file.fileno())
    return rows


def checksum(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file; CacheError where it has fewer or cannot be read."""
    sha = hashlib.sha256()
    left = size
    try:
        with path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                sha.update(block)
                left -= len(block)
    except OSError:
        raise CacheError(f"{path.name} cannot be read; run cxrbase-client ingest --again") from None
    if left:
        raise CacheError(f"{path.name} is {left} bytes too short; run cxrbase-client ingest --again")
    return sha.hexdigest()


def verify_cache(folder: Path) -> Index:
    """Compare every checksum; CacheError names the first file that is not what the ingest wrote."""
    index = read_index(folder)
    table = read_table(folder, index)
    for shard in index.shards:
        if checksum(folder / shard.file, shard.rows * index.height * index.width) != shard.sha256:
            raise CacheError(f"{shard.file} was altered after the ingest; run cxrbase-client ingest --again")
    rows = np.array([shard.rows for shard in index.shards], np.int64)
    if index.rows and (table["shard"].max() >= len(rows) or np.any(table["slot"] >= rows[table["shard"]])):
        raise CacheError(f"{index.table.file} points outside the shards; run cxrbase-client ingest again")
    return index
