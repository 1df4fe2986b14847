"""Small models and plans for the tests of the model package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cxrbase_model.plan import Plan
from cxrbase_model.settings import read


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small models are slower with more, and much slower where other work holds the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_plan() -> Plan:
    mapping: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "seed": 3,
        "data": {"findings": ["No Finding", "Nodule", "Effusion"], "image_size": 32},
        "model": {
            "encoder": "vit_micro", "patch_size": 8, "depth": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        },
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 2, "batch_size": 8, "mask_ratio": 0.75},
            {"kind": "finetune", "name": "detect", "rounds": 2, "batch_size": 8},
        ],
    }  # fmt: skip
    return read(Plan, mapping)
