"""Batches out of a cache that is larger than the processor's caches, against what else one could do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.timing import fastest
from client.archive.cache import Shard, append_pictures, checksum, shard_name, write_cache
from client.dataset import Cache, batches
from cxrbase_model.plan import DataSpec
from sim.phantom_sheet import example_pictures

_SIZE, _BATCH, _PICTURES = 224, 64, 4096  # 206 MB
_FILE_SIDE, _FILES = 1024, 24


def cache() -> dict[str, float]:
    """224-pixel batches in a random order from a cache of 206 MB: pictures a second, and as a ratio to opening, decoding and resizing
    1024-pixel PNG files each time (`ratio`), to decoding PNG files of 224 pixels (`to_small_png`) and to a plain copy of the same bytes
    in memory (`to_copy`, of its speed).
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = write_store(folder / "cache")
        rows = np.arange(len(store))
        large, small = _png_files(folder, _FILE_SIDE), _png_files(folder, _SIZE)

        def read() -> None:
            for _ in batches(store, rows, _BATCH, seed=1, epochs=1):
                pass

        source = store.pixels(rows)
        target = np.empty((_BATCH, _SIZE, _SIZE), np.uint8)

        def copy() -> None:
            for start in range(0, _PICTURES, _BATCH):
                np.copyto(target, source[start : start + _BATCH])

        seconds = fastest(read) / _PICTURES
        from_large = fastest(lambda: [_decode(file) for file in large], repeats=3) / _FILES
        from_small = fastest(lambda: [_decode(file) for file in small], repeats=3) / _FILES
        copied = fastest(copy) / _PICTURES
    return {
        "pictures_per_second": 1 / seconds,
        "pictures_per_second_png": 1 / from_large,
        "ratio": from_large / seconds,
        "to_small_png": from_small / seconds,
        "to_copy": copied / seconds,
    }


def write_store(folder: Path) -> Cache:
    """A cache of 4,096 pictures of 224 pixels that differ, without the ingest of so many."""
    examples = np.stack([_resized(picture, _SIZE) for picture in example_pictures(_FILE_SIDE)])
    pictures = (np.roll(examples[index % len(examples)], index % 31, axis=1) for index in range(_PICTURES))
    folder.mkdir()
    append_pictures(folder / shard_name(1), 0, pictures, _SIZE * _SIZE)
    table: dict[str, NDArray[Any]] = {
        "labels": np.zeros((_PICTURES, 1), np.float32),
        "patient": np.random.default_rng(0).integers(0, 256, (_PICTURES, 16), dtype=np.uint8),
        "shard": np.zeros(_PICTURES, np.uint32),
        "slot": np.arange(_PICTURES, dtype=np.uint32),
    }
    table |= {name: np.zeros(_PICTURES, np.uint8) for name in ("split", "sex", "age_band", "view", "scanner")}
    spec = DataSpec(image_size=_SIZE, findings=("No Finding",))
    shard = Shard(shard_name(1), _PICTURES, checksum(folder / shard_name(1), _PICTURES * _SIZE * _SIZE))
    write_cache(folder, spec, (_SIZE, _SIZE), [shard], table, {})
    return Cache.open(folder)


def _png_files(folder: Path, side: int) -> list[Path]:
    examples = example_pictures(_FILE_SIDE)
    rng = np.random.default_rng(0)
    files = []
    for index in range(_FILES):
        noisy = examples[index % len(examples)] + rng.normal(0, 3, (_FILE_SIDE, _FILE_SIDE))
        files.append(folder / f"{side}-{index}.png")
        Image.fromarray(_resized(np.clip(noisy, 0, 255).astype(np.uint8), side)).save(files[-1])
    return files


def _resized(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def _decode(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return _resized(np.asarray(picture.convert("L")), _SIZE)
