"""Simulated hospitals as arrays for training without a federation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.dataset import Cache
from client.site import read_site
from cxrbase_model.alone import Arrays
from cxrbase_model.plan import plan_from_text
from sim.arrays import write_arrays
from sim.tiny import write_tiny_hospital

PLAN = """{"schema": 1, "name": "small", "data": {"findings": ["Nodule", "Edema"], "image_size": 16},
"model": {"encoder": "vit_micro", "patch_size": 8}, "stages": [{"kind": "pretrain", "name": "mae"}]}"""


def test_the_pictures_of_all_hospitals_become_one_table_that_training_reads(tmp_path: Path) -> None:
    plan = plan_from_text(PLAN)
    sites = [write_tiny_hospital(tmp_path / name, name, plan.data) for name in ("north", "south")]
    write_arrays(sites, tmp_path / "arrays")
    arrays = Arrays(tmp_path / "arrays", plan)
    second = Cache.open(read_site(sites[1]).cache_folder)
    assert len(arrays.pictures) == 120
    assert np.array_equal(arrays.pictures[60:], second.pixels(np.arange(60)))
    assert np.array_equal(arrays.labels[60:], second.labels, equal_nan=True)
    assert len(np.unique(arrays.patients)) == 60, "patients of two hospitals are never one"
    assert sorted(len(arrays.rows(split)) for split in ("test", "train", "validation"))[0] > 0
