"""Masked feature prediction: what the teacher sees, how it moves, and that it goes on from round to round."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cxrbase_model.engine import Progress, Runtime, pretrain
from cxrbase_model.features import FeaturePredictor, build_objective
from cxrbase_model.plan import Optimizer, Plan, PretrainStage, Teacher
from cxrbase_model.predict import pretrain_loss
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import State, digest, load_state, moving_names, state_of, with_prefix
from cxrbase_model.vit import patchify

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def plan(small_plan: Plan) -> Plan:
    mapping: dict[str, Any] = to_mapping(small_plan)
    mapping["stages"][0] |= {"objective": "features", "masks": 2, "teacher": {"momentum": 0.9, "blocks": 2}}
    mapping["stages"][0]["optimizer"] |= {"lr": 0.05}
    return read(Plan, mapping)


def stage_of(plan: Plan) -> PretrainStage:
    stage = plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    return stage


def model_of(plan: Plan) -> FeaturePredictor:
    model = build_objective(plan, stage_of(plan))
    assert isinstance(model, FeaturePredictor)
    return model


def pictures(count: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(count, 1, 4, 4, generator=draw)
    return (F.interpolate(smooth, (32, 32), mode="bilinear")[:, 0] * 255).to(torch.uint8)


def test_the_loss_is_the_squared_error_to_the_teachers_features_of_hidden_patches(plan: Plan) -> None:
    model = model_of(plan).eval()
    images = torch.randn(2, 32, 32)
    visible, hidden = model.random_masking(4, 0.75, generator(0, "masks"))
    with torch.no_grad():
        losses = model(images, visible, hidden)
        for row in range(4):
            patches = patchify(images[row // 2 : row // 2 + 1], 8)
            x, sums = model.teacher.embed(patches) + model.teacher.positions(None, 1), torch.zeros(1, 16, 128)
            for block in model.teacher.blocks:
                x = block(x)
                sums += (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
            mean = sums / 2
            target = (mean - mean.mean(2, keepdim=True)) / (mean.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
            features = model.forward_encoder(patches, visible[row : row + 1])
            prediction = model.forward_decoder(features, visible[row : row + 1], hidden[row : row + 1])
            expected = (prediction[0] - target[0, hidden[row]]).square().mean()
            assert float(losses[row]) == pytest.approx(float(expected), rel=1e-4)


def test_the_teacher_starts_as_the_encoder_and_moves_less_and_less_towards_it(plan: Plan) -> None:
    model = model_of(plan)
    assert digest(model.teacher.state_dict()) == digest(model.encoder.state_dict())
    model.encoder.embed.weight.data += 1.0
    before = model.teacher.embed.weight.clone()
    for done, share in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        model.teacher.embed.weight.data.copy_(before)
        model.after_step(Teacher(momentum=0.9), done)
        moved = (model.teacher.embed.weight - before) / (model.encoder.embed.weight - before)
        torch.testing.assert_close(moved, torch.full_like(moved, share), atol=1e-5, rtol=0)


def test_it_learns_features_that_differ_from_place_to_place(plan: Plan) -> None:
    model, stage = model_of(plan), stage_of(plan)
    before = pretrain_loss(model, [pictures()], stage, 0, CPU)
    result = pretrain(model, [pictures()] * 60, stage, Progress(0, 60), 1, CPU)
    assert pretrain_loss(model, [pictures()], stage, 0, CPU) < 0.8 * before
    assert math.isfinite(result.loss)
    spread = model.encoder(patchify(torch.randn(4, 32, 32), 8)).std(dim=(0, 1)).mean()
    assert float(spread.detach()) > 0.1, "features that are the same everywhere would be a collapse"


def rounds(model: FeaturePredictor, plan: Plan, numbers: range, moments: State | None = None) -> State:
    """Rounds of one step each; returns the moments."""
    stage = replace(stage_of(plan), optimizer=Optimizer(lr=0.05, warmup=0.1))
    for number in numbers:
        moments = pretrain(model, [pictures()], stage, Progress(number, 8), number, CPU, moments).moments
    return moments or {}


def test_a_hospital_that_has_only_the_state_goes_on_as_one_that_was_there(plan: Plan) -> None:
    there, fresh = model_of(plan), model_of(plan)
    moments = rounds(there, plan, range(3))
    load_state(fresh, state_of(there))
    for model in (there, fresh):
        rounds(model, plan, range(3, 6), moments)
    assert digest(state_of(fresh)) == digest(state_of(there))
    assert digest(with_prefix(state_of(there), "teacher.")) != digest(with_prefix(state_of(model_of(plan)), "teacher."))


def test_the_teacher_travels_and_has_no_optimizer(plan: Plan) -> None:
    model = model_of(plan)
    assert moving_names(model) == state_of(model).keys()
    result = pretrain(model, [pictures()], stage_of(plan), Progress(0, 1), 1, CPU)
    assert not any("teacher." in name for name in result.moments)
