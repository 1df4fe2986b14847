"""A hospital with a small cache, and the tasks that a server would send it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from client.archive.cache import Shard, append_pictures, checksum, shard_name, write_cache
from client.site import Site, read_site
from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import pack
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.messages import Task
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, plan_to_text
from cxrbase_model.settings import read
from cxrbase_model.state import State, digest, state_of

SIDE, PATIENTS = 16, 30
PLANTED = "Planted^Patient"  # stands in the paths and texts that must not leave


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """So small models are slower with more, and much slower where other work holds the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plan() -> Plan:
    """Three stages over 16-pixel pictures."""
    mapping: dict[str, Any] = {
        "schema": 1, "name": "small", "seed": 3,
        "data": {"findings": ["No Finding", "Nodule", "Edema"], "image_size": SIDE},
        "model": {"encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 3, "local_epochs": 2, "batch_size": 8, "mask_ratio": 0.5},
            {"kind": "finetune", "name": "detect", "rounds": 3, "local_epochs": 1, "batch_size": 8, "label_fraction": 0.5},
            {"kind": "evaluate", "name": "test", "split": "test"},
        ],
        "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},
    }  # fmt: skip
    return read(Plan, mapping)


@pytest.fixture
def site(tmp_path: Path, plan: Plan) -> Site:
    """A hospital of 30 patients with two pictures each; the paths hold a patient's name."""
    home = tmp_path / PLANTED
    rng = np.random.default_rng(0)
    rows = 2 * PATIENTS
    pictures = rng.integers(0, 256, (rows, SIDE, SIDE), dtype=np.uint8)
    cache = home / "private" / "cache"
    cache.mkdir(parents=True)
    append_pictures(cache / shard_name(1), 0, iter(pictures), SIDE * SIDE)
    patients = np.arange(rows) // 2
    labels = rng.integers(0, 2, (rows, 3)).astype(np.float32)
    labels[rng.random((rows, 3)) < 0.2] = np.nan
    labels[patients % 10 == 0] = np.nan  # three patients without any label
    table: dict[str, NDArray[Any]] = {
        "labels": labels,
        "patient": np.repeat(patients.astype(np.uint8)[:, None], 16, axis=1),
        "split": np.digitize(patients, [18, 23]).astype(np.uint8),
        "shard": np.zeros(rows, np.uint32),
        "slot": np.arange(rows, dtype=np.uint32),
        **{name: np.ones(rows, np.uint8) for name in ("sex", "age_band", "view", "scanner")},
    }
    shards = [Shard(shard_name(1), rows, checksum(cache / shard_name(1), rows * SIDE * SIDE))]
    write_cache(cache, plan.data, (SIDE, SIDE), shards, table, {"LATERAL": 2, "NOT_CHEST": 7})
    settings = {
        "schema": 1,
        "site": "riverside",
        "archive": {"kind": "dicom", "path": "dicom"},
        "compute": {"device": "cpu"},
        "policy": {"plans": "any"},
    }
    (home / "SITE.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return read_site(home / "SITE.yaml")


@pytest.fixture
def state_for(plan: Plan) -> Callable[[str], State]:
    """The first weights of a stage's model."""

    def make(stage: str) -> State:
        found = plan.stage(stage)
        if isinstance(found, FinetuneStage):
            return state_of(build_classifier(plan, found))
        return state_of(build_autoencoder(plan))

    return make


@pytest.fixture
def task_for(plan: Plan, state_for: Callable[[str], State]) -> Callable[..., Task]:
    """A task as the server sends it: `task_for("mae", 2)`, fields changed by name."""

    def make(stage: str, stage_round: int = 1, **changes: Any) -> Task:
        the_plan = changes.pop("plan", plan)
        text, found = plan_to_text(the_plan), None if stage == "describe" else the_plan.stage(stage)
        if found is None:
            return replace(Task("describe", "run", 0, "describe", 1, "", text, the_plan.digest), **changes)
        assert isinstance(found, PretrainStage | FinetuneStage | EvaluateStage)
        model = "detect" if isinstance(found, EvaluateStage) else stage
        state = changes.pop("state", None) or state_for(model)
        task = Task(
            found.kind, "run", stage_round, stage, stage_round, model, text, the_plan.digest, digest(state), pack(state)
        )
        return replace(task, **changes)

    return make
