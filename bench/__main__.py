"""`python -m bench [PART...]`: run the parts, or all; the last line is JSON of part to figures."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from bench.ingest import ingest
from client.archive.ingest import ingest as make_cache
from client.dataset import Cache
from client.site import read_site
from cxrbase_model.plan import DataSpec
from server.aggregate import WeightedMean
from sim.phantom_sheet import example_pictures

_SIDE, _PICTURES, _SMALL, _BATCH = 1024, 120, 224, 32
_REPEATS = 5


def cache() -> dict[str, float]:
    """Batches of 224-pixel pictures from the cache against opening, decoding and resizing the PNG files they were made of."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _write_pictures(folder)
        spec = DataSpec(image_size=_SMALL, findings=("No Finding",))
        site = read_site(folder / "SITE.yaml")
        make_cache(site, spec)
        store = Cache.open(site.cache_folder)
        rows = np.random.default_rng(0).permutation(len(store.labels))
        if len(rows) != _PICTURES:
            raise RuntimeError(f"cache: expected {_PICTURES} pictures, found {len(rows)}")
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        from_cache = _fastest(lambda: [store.pixels(batch) for batch in batches])
        from_files = _fastest(lambda: [_decode(file) for file in files], repeats=2)
    return {
        "pictures_per_second": len(rows) / from_cache,
        "pictures_per_second_png": len(files) / from_files,
        "ratio": (from_files / len(files)) / (from_cache / len(rows)),
    }


def fold() -> dict[str, float]:
    """Folding eight updates into the running mean as they come against keeping them all and averaging at the end."""
    generator = torch.Generator().manual_seed(0)
    state = {f"layer{index}": torch.randn(768, 768, generator=generator) for index in range(12)}
    updates = [{name: torch.randn_like(tensor) * 0.01 for name, tensor in state.items()} for _ in range(8)]

    def folded() -> None:
        mean = WeightedMean(state)
        for update in updates:
            mean.fold(update, 10)
        mean.result()

    def kept() -> None:
        for name in state:
            torch.stack([update[name].double() * 10 for update in updates]).sum(0).div_(80).float()

    ours, plain = _fastest(folded), _fastest(kept)
    size = sum(tensor.nbytes for tensor in state.values())
    return {"seconds": ours, "seconds_plain": plain, "ratio": plain / ours, "megabytes_of_an_update": size / 1e6}


PARTS: dict[str, Callable[[], dict[str, float]]] = {"cache": cache, "fold": fold, "ingest": ingest}


def main() -> int:
    """Run the named parts; 2 where one is unknown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    names = parser.parse_args().parts or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"bench: PART: expected of {', '.join(PARTS)}, found {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = {}
    for name in names:
        found[name] = {key: float(f"{value:.4g}") for key, value in PARTS[name]().items()}
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))
    return 0


def _write_pictures(folder: Path) -> list[Path]:
    """A folder hospital of phantom radiographs with a little noise of their own."""
    (folder / "images").mkdir()
    examples = example_pictures(_SIDE)
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "patient_id", "findings"])
        for index in range(_PICTURES):
            noise = rng.normal(0, 3, (_SIDE, _SIDE))
            picture = np.clip(examples[index % len(examples)] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / "images" / f"{index}.png")
            writer.writerow([f"images/{index}.png", f"p{index}", "No Finding"])
    site = {"schema": 1, "site": "bench", "archive": {"kind": "folder", "path": "."}}
    site["labels"] = {"names": {"No Finding": "No Finding"}}
    (folder / "SITE.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    return sorted((folder / "images").iterdir())


def _decode(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("L").resize((_SMALL, _SMALL), Image.Resampling.BILINEAR))


def _fastest(action: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The least of the times of several repetitions, seconds: what noise of the machine disturbs least."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
