"""The classifier, and what of it a stage trains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.engine import Progress, Runtime, finetune
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Optimizer, Plan
from cxrbase_model.predict import feature_statistics, predict
from cxrbase_model.state import load_state, moving_names, state_of, subtract, with_prefix
from cxrbase_model.vit import patchify

CPU = Runtime(torch.device("cpu"))


def stage(plan: Plan, trains: str = "all", pooling: str = "mean") -> FinetuneStage:
    found = plan.stage("detect")
    assert isinstance(found, FinetuneStage)
    optimizer = Optimizer(lr=0.3, beta2=0.999, warmup=0.1)
    return replace(found, trains=trains, pooling=pooling, last_blocks=1, lora_rank=2, optimizer=optimizer)


def bright_or_dark(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.zeros(count, 3)
    targets[::2, 1] = 1
    targets[:, 2] = math.nan
    images = torch.where(targets[:, 1, None, None] > 0, 200, 60).expand(count, 32, 32).to(torch.uint8)
    return images, targets


def trained(plan: Plan, settings: FinetuneStage, steps: int = 30) -> Classifier:
    model = build_classifier(plan, settings)
    finetune(model, [bright_or_dark()] * steps, settings, torch.ones(3), Progress(0, steps), 1, CPU)
    return model


@pytest.mark.parametrize("pooling", ["mean", "grid", "attentive"])
def test_it_starts_undecided_and_shares_the_encoders_names_with_the_autoencoder(small_plan: Plan, pooling: str) -> None:
    model = build_classifier(small_plan, stage(small_plan, pooling=pooling))
    assert torch.equal(model(torch.randn(2, 32, 32)), torch.zeros(2, 3))
    own, other = state_of(model), state_of(build_autoencoder(small_plan))
    assert with_prefix(own, "encoder.").keys() == with_prefix(other, "encoder.").keys()


@pytest.mark.parametrize("pooling", ["mean", "grid", "attentive"])
@pytest.mark.parametrize("trains", ["all", "head", "last", "lora"])
def test_only_what_a_stage_trains_moves_and_it_learns(small_plan: Plan, trains: str, pooling: str) -> None:
    settings = stage(small_plan, trains, pooling)
    before = state_of(build_classifier(small_plan, settings))
    model = trained(small_plan, settings)
    changes = subtract(state_of(model), before)
    moved = {name for name, change in changes.items() if bool(change.any())}
    assert moved <= moving_names(model)
    assert {"head.weight", "head.bias"} <= moved
    inside = {name.removeprefix("encoder.") for name in moving_names(model) if name.startswith("encoder.")}
    every = {name for name, _ in model.encoder.named_parameters()}
    expected = {
        "all": every,
        "head": set(),
        "last": {name for name in every if name.startswith(("blocks.1.", "norm."))},
        "lora": {name for name in every if "lora_" in name},
    }[trains]
    assert inside == expected
    scores = predict(model, [bright_or_dark()[0]], CPU)[:, 1]
    assert float(scores[::2].min()) > 0.5 > float(scores[1::2].max())


def test_a_finding_is_judged_by_its_own_query_and_its_own_weights(small_plan: Plan) -> None:
    model = trained(small_plan, stage(small_plan, "head", "attentive"))
    images = torch.randn(2, 32, 32)
    before = model(images).detach()
    assert model.pool is not None
    model.pool.queries.weight.data[1] += 1.0
    changed = (model(images).detach() != before).any(dim=0)
    assert changed.tolist() == [False, True, False]


def test_a_frozen_encoder_drops_no_paths(small_plan: Plan) -> None:
    draws = torch.Generator().manual_seed(0)
    for trains, drops in (("all", True), ("last", True), ("lora", True), ("head", False)):
        encoder = build_classifier(small_plan, stage(small_plan, trains)).encoder
        assert (encoder.draw_paths(4, draws) is not None) == drops


def test_a_grid_shows_the_head_the_mean_patch_of_each_region_and_standardised_features_are_fixed(
    small_plan: Plan,
) -> None:
    settings = replace(stage(small_plan, "head", "grid"), grid=2, standardise=True)
    model = build_classifier(small_plan, settings).eval()
    side, width = model.encoder.side, model.encoder.embed.out_features
    features = torch.randn(3, side**2, width)
    regions = features.reshape(3, 2, side // 2, 2, side // 2, width).mean(dim=(2, 4))
    assert torch.allclose(model._regions(features), regions.permute(0, 3, 1, 2).flatten(1), atol=1e-6)
    images = [torch.randint(0, 255, (5, 32, 32), dtype=torch.uint8) for _ in range(3)]
    statistics = feature_statistics(model, images, CPU)
    load_state(model, state_of(model) | statistics)
    assert model.standard is not None
    with torch.no_grad():
        shown = model.standard(model.encoder(patchify(normalise(torch.cat(images)), model.encoder.patch)))
    assert torch.allclose(shown.mean(dim=0), torch.zeros(side**2, width), atol=1e-3)
    assert shown.std(dim=0, correction=0).median() == pytest.approx(1.0, abs=0.02)
    assert not {name for name in moving_names(model) if name.startswith("standard")}
    with pytest.raises(ValueError, match="expected pictures"):
        feature_statistics(model, [], CPU)
