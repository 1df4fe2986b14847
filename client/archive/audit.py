"""The proof for the hospital that its cache holds what it may and nothing else.

Three kinds of evidence. By construction: each file of the cache is exactly what its typed contents write, so there is no place
for anything else. By search: no identifier of any file of the archive is found. By repetition: pictures that are rendered again
from the archive are byte for byte those of the cache.

In pictures, short texts occur by chance (noise around the grey of "5" spells dates), so there only texts are searched that are
too long for that; what is shorter is covered by the repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors.numpy import save

from client.archive.cache import CODES, TABLE, Index, read_table, shard_name, verify_cache
from client.archive.identifiers import identifiers
from client.archive.identity import load_secret
from client.archive.ingest import prepare_settings
from client.archive.manifest import Entry, Manifest
from client.archive.needles import SHORTEST, Needles, chunks
from client.archive.open_source import open_source
from client.archive.prepare import Job, Prepared, prepare
from client.archive.sources import Item, Source
from client.archive.workers import Pool
from client.site import Site

Task = TypeVar("Task")
Result = TypeVar("Result")

_CHANCE = 0.001  # expected texts found by chance that decide how long a text must be to be searched in pictures


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    passed: bool
    text: str


def fields() -> list[tuple[str, str, str]]:
    """Every field that is kept: where, its name and type, and what it is."""
    kept = [
        ("cache.json", "spec, spec_digest", "the plan's data specification, as every hospital has it"),
        ("cache.json", "rows, height, width, shards, table", "counts, file names within the cache, checksums"),
        ("cache.json", "exclusions", "number of files for each reason code"),
        ("pixels-*.u8", "uint8", "the pictures, resized; nothing before, between or behind them"),
    ]
    kept += [("table-*.safetensors", f"{name} ({dtype})", meaning) for name, (dtype, meaning) in TABLE.items()]
    return [
        *kept,
        ("../optimizer/*", "float32", "means of gradients over all pictures, from round to round; never sent"),
    ]


def audit(site: Site, pictures: int = 64) -> list[Check]:
    """Look for whatever should not be in the cache; `pictures` are rendered again.

    Raises CacheError where there is no valid cache, SourceLost where the archive is not there to compare with.
    """
    index = verify_cache(site.cache_folder)
    with closing(open_source(site)) as source:
        items = {item.key: item for item in source.items()}
        texts = _identifiers(site, source, items.values())
        repeated = _repeat(site, index, source, items, pictures)
    checks = [Check(True, f"{index.rows} pictures in {len(index.shards)} shards: every checksum is right")]
    checks += [
        _files(site.cache_folder, index),
        _rights(site.private),
        _index(site.cache_folder, index),
        _table(site, index),
    ]
    checks += [*_search(site, index, texts), repeated]
    return checks


def _files(folder: Path, index: Index) -> Check:
    known: dict[str, int | None] = {"cache.json": None, index.table.file: None}
    known |= {shard.file: shard.rows * index.height * index.width for shard in index.shards}
    strays = [path.name for path in folder.iterdir() if path.name not in known]
    longer = [name for name, size in known.items() if size is not None and (folder / name).stat().st_size != size]
    if strays or longer:
        return Check(
            False, f"the cache folder holds more than it should: {', '.join(strays + longer)}; run ingest to the end"
        )
    return Check(True, f"the cache folder holds its {len(known)} files, each of its exact length, and no other")


def _rights(private: Path) -> Check:
    wrong = [path for path in (private, *private.rglob("*")) if path.stat().st_mode & 0o077]
    if wrong:
        return Check(False, f"{len(wrong)} files of the private folder can be read by others, such as {wrong[0].name}")
    return Check(True, "every file of the private folder is its owner's alone")


def _index(folder: Path, index: Index) -> Check:
    same = (folder / "cache.json").read_bytes() == index.to_json()
    return Check(
        same, "cache.json is exactly its typed contents" if same else "cache.json holds more than its typed contents"
    )


def _table(site: Site, index: Index) -> Check:
    table = read_table(site.cache_folder, index)
    data = (site.cache_folder / index.table.file).read_bytes()
    if set(table) != set(TABLE) or data != save({name: table[name] for name in TABLE}):
        return Check(False, f"{index.table.file} holds more than the fields above")
    for name, codes in CODES.items():
        if index.rows and table[name].max() >= len(codes):
            return Check(False, f"{index.table.file}: {name} has values that mean nothing")
    labels = table["labels"]
    if not np.isin(labels[~np.isnan(labels)], [0.0, 0.5, 1.0]).all():
        return Check(False, f"{index.table.file}: labels has values other than 0, 0.5, 1 and unknown")
    with closing(Manifest(site.private / "manifest.sqlite")) as manifest:
        known = {entry.patient for entry in manifest.used()}
    if {bytes(key) for key in table["patient"]} - known:
        return Check(False, f"{index.table.file}: patient has keys that are not HMACs of this ingest")
    return Check(True, "the table is exactly the fields above, each value one of those it may have")


def _identifiers(site: Site, source: Source, items: Iterable[Item]) -> set[str]:
    found: set[str] = set()
    with _pool(site, identifiers) as pool:
        for item, texts in pool.run(source.fetch(items)):
            if isinstance(texts, tuple):
                found.update(texts)
            source.done([item])
    return found


def _pool(site: Site, function: Callable[[Task], Result]) -> Pool[Task, Result]:
    return Pool(function, count=site.compute.workers, seconds=site.limits.seconds, memory=site.limits.memory << 20)


def _search(site: Site, index: Index, texts: set[str]) -> Iterator[Check]:
    """Look for the identifiers in each file of the cache, as one-byte text and as UTF-16 in both byte orders."""
    texts = {text for text in texts if len(text) >= SHORTEST and text not in _public(index)}
    small = Needles(_encoded(texts, 0, 0))
    for name in ("cache.json", index.table.file):
        hits = small.find([_without_checksums((site.cache_folder / name).read_bytes(), index)])
        yield _told(name, hits, f"none of {len(texts)} identifiers of the archive, of {SHORTEST} or more characters")
    size = sum(shard.rows for shard in index.shards) * index.height * index.width
    digits, letters = _length(size, len(texts), 10), _length(size, len(texts), 26)
    large = Needles(_encoded(texts, digits, letters))
    hits = set()
    for shard in index.shards:
        with (site.cache_folder / shard.file).open("rb") as file:
            hits |= large.find(chunks(file))
    yield _told(
        "pixels",
        hits,
        f"none of the identifiers of {digits} or more digits, {letters} or more letters, or any in UTF-16",
    )


def _public(index: Index) -> set[str]:
    """Words that cache.json has from the plan: a header may use them too."""
    return {
        *index.spec.findings,
        *(word for finding in index.spec.findings for word in finding.split()),
        *index.exclusions,
    }


def _without_checksums(data: bytes, index: Index) -> bytes:
    """The text without its checksums, which were compared with the files and by chance may spell a number."""
    for shard in (index.table, *index.shards):
        data = data.replace(shard.sha256.encode(), b"")
    return data


def _encoded(texts: Iterable[str], digits: int, letters: int) -> Iterator[bytes]:
    for text in texts:
        if len(text) >= (digits if all(one in "0123456789.-/" for one in text) else letters):
            yield text.encode("utf-8", "replace")
        yield text.encode("utf-16-le", "replace")
        yield text.encode("utf-16-be", "replace")


def _length(size: int, texts: int, alphabet: int) -> int:
    """How long a text must be so that fewer than _CHANCE of all are expected in `size` random characters of an alphabet."""
    return max(SHORTEST, math.ceil(math.log(max(size * texts, 2) / _CHANCE) / math.log(alphabet)))


def _told(name: str, hits: set[bytes], none: str) -> Check:
    if hits:
        return Check(False, f"{name} holds {len(hits)} texts that also stand in the archive's headers or file names")
    return Check(True, f"{name}: {none}")


def _repeat(site: Site, index: Index, source: Source, items: dict[str, Item], pictures: int) -> Check:
    """Render pictures again, chosen by the secret, and compare them with the cache."""
    secret = load_secret(site.private)
    with closing(Manifest(site.private / "manifest.sqlite")) as manifest:
        entries = sorted(manifest.used(), key=lambda entry: secret.key("audit", entry.name))[:pictures]
    settings = prepare_settings(site, index.spec)
    places = {items[entry.name]: entry for entry in entries if entry.name in items}
    equal = 0
    with _pool(site, prepare) as pool:
        for job, result in pool.run(Job(item, settings) for item in source.fetch(places)):
            equal += isinstance(result, Prepared) and _kept(site, index, places[job.item]) == _bytes(result)
            source.done([job.item])
    text = f"{equal} of {len(entries)} pictures that were rendered again are byte for byte those of the cache"
    return Check(equal == len(entries), text)


def _bytes(prepared: Prepared) -> bytes:
    return b"" if prepared.picture is None else prepared.picture.tobytes()


def _kept(site: Site, index: Index, entry: Entry) -> bytes:
    side = index.height * index.width
    with (site.cache_folder / shard_name(entry.shard or 0)).open("rb") as file:
        file.seek((entry.slot or 0) * side)
        return file.read(side)
