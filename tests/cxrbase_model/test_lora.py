"""Low-rank adapters change nothing at first, and can be merged without changing anything later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.export import export_classifier, export_encoder, load_classifier, read_encoder
from cxrbase_model.lora import merged
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.state import digest, state_of, with_prefix


def stage(plan: Plan, trains: str) -> FinetuneStage:
    found = plan.stage("detect")
    assert isinstance(found, FinetuneStage)
    return replace(found, trains=trains, lora_rank=3)


def adapted(plan: Plan) -> Classifier:
    model = build_classifier(plan, stage(plan, "lora"))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_up" in name or name.startswith("head."):
            parameter.data.normal_(std=0.3, generator=draw)
    return model.eval()


def test_every_matrix_of_every_block_has_an_adapter_that_starts_at_nothing(small_plan: Plan) -> None:
    plain, model = (
        build_classifier(small_plan, stage(small_plan, "all")),
        build_classifier(small_plan, stage(small_plan, "lora")),
    )
    images = torch.randn(2, 32, 32)
    assert torch.equal(plain(images), model(images))
    adapters = {name for name in state_of(model) if "lora_up" in name}
    assert len(adapters) == 2 * 4
    assert digest(merged(state_of(model))) == digest(state_of(plain))


def test_merged_weights_compute_what_the_adapters_did(small_plan: Plan) -> None:
    model, plain = adapted(small_plan), build_classifier(small_plan, stage(small_plan, "all")).eval()
    plain.load_state_dict(merged(state_of(model)))
    images = torch.randn(4, 32, 32)
    assert float(model(images).std().detach()) > 0.01
    torch.testing.assert_close(plain(images), model(images), atol=1e-5, rtol=1e-4)


def test_an_export_has_no_adapters(small_plan: Plan, tmp_path: Path) -> None:
    model = adapted(small_plan)
    settings = stage(small_plan, "lora")
    again, _ = load_classifier(export_classifier(state_of(model), small_plan, settings, tmp_path / "classifier"))
    images = torch.randn(4, 32, 32)
    torch.testing.assert_close(again(images), model(images), atol=1e-5, rtol=1e-4)
    encoder = read_encoder(export_encoder(state_of(model), small_plan, tmp_path / "encoder"), small_plan)
    assert digest(encoder) == digest(with_prefix(merged(state_of(model)), "encoder."))
