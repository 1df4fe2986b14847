"""Batches come straight from the shards, in an order that follows from the seed alone."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.archive import cache as cache_module
from client.archive.cache import Shard, append_pictures, checksum, shard_name, verify_cache, write_cache
from client.dataset import Cache, CacheError, batches
from cxrbase_model.plan import DataSpec

SIDE, ROWS = 16, 23


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of 23 pictures, each filled with its row, in three shards, in another order than the rows."""
    rng = np.random.default_rng(0)
    order = rng.permutation(ROWS)
    shards, places = [], np.empty((ROWS, 2), np.uint32)
    for number, rows in enumerate(np.array_split(order, 3)):
        path = tmp_path / "cache" / shard_name(number + 1)
        path.parent.mkdir(exist_ok=True)
        append_pictures(path, 0, (np.full((SIDE, SIDE), row, np.uint8) for row in rows), SIDE * SIDE)
        shards.append(Shard(path.name, len(rows), checksum(path, len(rows) * SIDE * SIDE)))
        places[rows] = [(number, slot) for slot in range(len(rows))]
    labels = np.where(np.arange(ROWS)[:, None] % 4 == 3, np.nan, np.arange(ROWS)[:, None] % 2).astype(np.float32)
    patients = np.arange(ROWS) // 3
    table: dict[str, NDArray[Any]] = {
        "labels": labels,
        "patient": np.repeat(patients.astype(np.uint8)[:, None], 16, axis=1),
        "split": (patients % 3).astype(np.uint8),
        "shard": places[:, 0],
        "slot": places[:, 1],
        **{name: np.ones(ROWS, np.uint8) for name in ("sex", "age_band", "view", "scanner")},
    }
    spec = DataSpec(findings=("Edema",), image_size=SIDE)
    write_cache(tmp_path / "cache", spec, (SIDE, SIDE), shards, table, {"LATERAL": 2})
    return tmp_path / "cache"


def order_of(cache: Cache, **settings: Any) -> list[list[int]]:
    settings = {"batch_size": 5, "seed": 1, "epochs": 1.0} | settings
    rows = np.arange(len(cache))
    return [images[:, 0, 0].tolist() for images, _ in batches(cache, rows, **settings)]


def test_pixels_come_in_the_order_asked_for(folder: Path) -> None:
    cache = Cache.open(folder)
    rows = np.array([7, 0, 22, 7])
    assert cache.pixels(rows)[:, 3, 3].tolist() == [7, 0, 22, 7]
    assert cache.pixels(rows).shape == (4, SIDE, SIDE)
    assert len(cache) == ROWS
    assert cache.exclusions == {"LATERAL": 2}


def test_rows_of_the_splits_are_all_rows_and_patients_are_dense(folder: Path) -> None:
    cache = Cache.open(folder)
    rows = np.concatenate([cache.rows(split) for split in ("train", "validation", "test")])
    assert sorted(rows.tolist()) == list(range(ROWS))
    assert cache.patients.tolist() == (np.arange(ROWS) // 3).tolist()


def test_a_batch_is_uint8_pictures_with_their_own_labels(folder: Path) -> None:
    cache = Cache.open(folder)
    for images, labels in batches(cache, cache.rows("train"), 4, seed=3, epochs=2):
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.float32
        torch.testing.assert_close(labels, torch.from_numpy(cache.labels[images[:, 0, 0].numpy()]), equal_nan=True)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_order_is_the_same_for_any_number_of_workers(folder: Path, workers: int) -> None:
    cache = Cache.open(folder)
    assert order_of(cache, workers=workers, epochs=3) == order_of(cache, epochs=3)


def test_the_order_follows_the_seed_and_changes_with_each_pass(folder: Path) -> None:
    cache = Cache.open(folder)
    assert order_of(cache) == order_of(cache)
    assert order_of(cache) != order_of(cache, seed=2)
    twice = list(chain.from_iterable(order_of(cache, batch_size=ROWS, epochs=2)))
    assert twice[:ROWS] != twice[ROWS:]
    assert sorted(twice[:ROWS]) == sorted(twice[ROWS:]) == list(range(ROWS))


@pytest.mark.parametrize(("epochs", "sizes"), [(1.0, [5] * 5), (0.5, [5] * 3), (0.01, [1]), (3.0, [5] * 14)])
def test_all_batches_have_one_size_and_each_pass_shows_each_picture_once(
    folder: Path, epochs: float, sizes: list[int]
) -> None:
    shown = order_of(Cache.open(folder), epochs=epochs)
    assert [len(batch) for batch in shown] == sizes
    first_pass = list(chain.from_iterable(shown))[:ROWS]
    assert len(set(first_pass)) == len(first_pass)


def test_a_batch_larger_than_all_passes_together_is_as_large_as_they_are(folder: Path) -> None:
    assert [len(batch) for batch in order_of(Cache.open(folder), batch_size=64, epochs=2)] == [46]


def test_no_rows_give_no_batches(folder: Path) -> None:
    assert not list(batches(Cache.open(folder), np.empty(0, np.int64), 4, seed=0, epochs=1))


def test_an_ingest_that_appends_does_not_disturb_a_reader(folder: Path) -> None:
    cache = Cache.open(folder)
    before = cache.pixels(np.arange(ROWS)).copy()
    append_pictures(folder / shard_name(3), 7, [np.full((SIDE, SIDE), 99, np.uint8)] * 3, SIDE * SIDE)
    np.testing.assert_array_equal(cache.pixels(np.arange(ROWS)), before)
    np.testing.assert_array_equal(Cache.open(folder).pixels(np.arange(ROWS)), before)
    verify_cache(folder)


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("cache.json", None, r"cache\.json is not there; run cxrbase-client ingest first"),
        ("cache.json", b"{", r"cache\.json cannot be read"),
        ("cache.json", b"{}", r"cache\.json is not what this version writes"),
        ("table", b"xx", r"table-.*\.safetensors was altered"),
        ("table", None, r"table-.*\.safetensors cannot be read"),
        ("pixels-00002.u8", None, r"pixels-00002\.u8 is missing or too short"),
        ("pixels-00002.u8", b"xx", r"pixels-00002\.u8 is missing or too short"),
    ],
)
def test_a_damaged_cache_is_refused_with_the_name_of_the_file(
    folder: Path, name: str, damage: bytes | None, line: str
) -> None:
    (path,) = folder.glob(f"{name}*")
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(CacheError, match=line):
        Cache.open(folder)


def test_verify_finds_one_changed_byte(folder: Path) -> None:
    verify_cache(folder)
    data = bytearray((folder / "pixels-00002.u8").read_bytes())
    data[100] ^= 1
    (folder / "pixels-00002.u8").write_bytes(data)
    with pytest.raises(CacheError, match=r"pixels-00002\.u8 was altered after the ingest"):
        verify_cache(folder)


def test_a_table_with_another_array_is_not_written(folder: Path) -> None:
    with pytest.raises(ValueError, match="table: expected the arrays labels"):
        write_cache(folder, DataSpec(findings=("Edema",)), (1, 1), [], {"names": np.zeros(1)}, {})
    assert cache_module.read_index(folder).rows == ROWS
