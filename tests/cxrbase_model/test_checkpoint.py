"""Training that is interrupted goes on from its last local checkpoint, to the same bits."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import build_classifier
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.features import build_objective
from cxrbase_model.plan import EvaluateStage, Optimizer, Plan, PretrainStage
from cxrbase_model.state import State, digest, state_of

CPU = Runtime(torch.device("cpu"))
STEPS = 7


class PowerCut(Exception):
    """The machine goes away."""


def batches(until: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        if step == until:
            raise PowerCut
        images = torch.randint(0, 256, (8, 32, 32), dtype=torch.uint8, generator=draw)
        yield images, (torch.rand(8, 3, generator=draw) < 0.5).float()


def train(
    plan: Plan, name: str, checkpoint: LocalCheckpoint | None = None, until: int = -1, seed: int = 1, **changes: Any
) -> tuple[State, LocalResult]:
    stage = plan.stage(name)
    assert not isinstance(stage, EvaluateStage)
    stage = replace(stage, optimizer=Optimizer(lr=0.1, warmup=0.1), **changes)
    if isinstance(stage, PretrainStage):
        pretraining = build_objective(plan, stage)
        images = (images for images, _ in batches(until))
        result = pretrain(pretraining, images, stage, Progress(0, STEPS), seed, CPU, None, checkpoint)
        return state_of(pretraining), result
    model = build_classifier(plan, stage)
    result = finetune(model, batches(until), stage, torch.ones(3), Progress(0, STEPS), seed, CPU, None, checkpoint)
    return state_of(model), result


@pytest.mark.parametrize(
    ("name", "changes"),
    [("mae", {}), ("mae", {"objective": "features", "masks": 2}), ("detect", {"drop_path": 0.5})],
    ids=["mae", "features", "finetune"],
)
def test_interrupted_training_ends_in_the_bits_of_one_that_was_left_alone(
    small_plan: Plan, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    path = tmp_path / "private" / "interrupted.safetensors"
    for until in (3, 5):  # twice, the second time on from the first
        with pytest.raises(PowerCut):
            train(small_plan, name, LocalCheckpoint(path, seconds=0), until, **changes)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    state, result = train(small_plan, name, LocalCheckpoint(path, seconds=0), **changes)
    expected_state, expected = train(small_plan, name, **changes)
    assert digest(state) == digest(expected_state)
    assert digest(result.moments) == digest(expected.moments)
    assert (result.loss, result.steps, result.examples) == (expected.loss, expected.steps, expected.examples)
    assert not path.exists(), "done is done"


@pytest.mark.parametrize("settings", [{"seed": 2}, {"mask_ratio": 0.5}])
def test_another_trainings_checkpoint_is_not_read(small_plan: Plan, tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "interrupted.safetensors"
    with pytest.raises(PowerCut):
        train(small_plan, "mae", LocalCheckpoint(path, seconds=0), 4)
    state, _ = train(small_plan, "mae", LocalCheckpoint(path, seconds=3600), **settings)
    assert digest(state) == digest(train(small_plan, "mae", **settings)[0])


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_checkpoint_costs_what_it_held_and_nothing_else(
    small_plan: Plan, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "interrupted.safetensors"
    path.write_bytes(content)
    state, _ = train(small_plan, "detect", LocalCheckpoint(path, seconds=0))
    assert digest(state) == digest(train(small_plan, "detect")[0])


def test_none_is_written_before_it_is_due(small_plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "interrupted.safetensors"
    with pytest.raises(PowerCut):
        train(small_plan, "mae", LocalCheckpoint(path, seconds=3600), 4)
    assert not path.exists()
