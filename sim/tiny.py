"""Hospitals of random pictures whose training cache is written directly: for trying out networks and daemons, not for learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from client.archive.cache import Shard, append_pictures, checksum, shard_name, write_cache
from cxrbase_model.files import private_folder
from cxrbase_model.plan import DataSpec
from cxrbase_model.seeds import derive_seed

_PATIENTS = 30
_EACH = 2  # pictures of a patient
_SPLITS = (18, 22)  # patients before which validation and test begin


def write_tiny_hospital(home: Path, name: str, spec: DataSpec, *, seed: int = 0) -> Path:
    """Write SITE.yaml and a cache of 60 random pictures of 30 patients to `home`; the same seed and name give the same bytes."""
    rng = np.random.default_rng(derive_seed(seed, "tiny hospital", name))
    rows, side, findings = _PATIENTS * _EACH, spec.image_size, len(spec.findings)
    cache = private_folder(home / "private" / "cache")
    pictures = rng.integers(0, 256, (rows, side, side), dtype=np.uint8)
    append_pictures(cache / shard_name(1), 0, iter(pictures), side * side)
    patients = np.arange(rows) // _EACH
    table: dict[str, NDArray[Any]] = {
        "labels": rng.integers(0, 2, (rows, findings)).astype(np.float32),
        "patient": np.repeat(patients.astype(np.uint8)[:, None], 16, axis=1),
        "split": np.digitize(patients, _SPLITS).astype(np.uint8),
        "shard": np.zeros(rows, np.uint32),
        "slot": np.arange(rows, dtype=np.uint32),
    }
    table |= {group: np.ones(rows, np.uint8) for group in ("sex", "age_band", "view", "scanner")}
    shards = [Shard(shard_name(1), rows, checksum(cache / shard_name(1), rows * side * side))]
    write_cache(cache, spec, (side, side), shards, table, {})
    (home / "dicom").mkdir(exist_ok=True)
    settings = {
        "schema": 1,
        "site": name,
        "archive": {"kind": "dicom", "path": "dicom"},
        "compute": {"device": "cpu"},
        "policy": {"plans": "any", "patients": 1},  # made up; studies use very few labels
        "daemon": {"health": "", "least_free": 0.05},
    }
    (home / "SITE.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return home / "SITE.yaml"
