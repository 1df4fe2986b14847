"""What counts for a finding, against a version that follows one picture, one finding and one patch at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.predict import attention_maps
from cxrbase_model.relevance import relevance_maps


def classifier(plan: Plan, pooling: str, trains: str = "all") -> Classifier:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    model, draw = (
        build_classifier(plan, replace(stage, pooling=pooling, trains=trains)),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def attentions(model: Classifier) -> list[Any]:
    """The attention of each block, of which timm's types say nothing."""
    return [block.attn for block in model.encoder.blocks]


def slow_map(model: Classifier, image_HW: Tensor, finding: int) -> Tensor:
    """By the paper's equations 5, 6 and 10, attention made and differentiated by hand."""
    patches, kept = model.encoder.side**2, list[Tensor]()
    pooled = torch.full((patches,), 1 / patches)
    if model.pool is not None:
        pooled = attention_maps(model, image_HW[None])[0, finding].flatten()
    for layer in attentions(model):

        def attend(x: Tensor, attn: Any = layer, **_: object) -> Tensor:
            q, k, v = attn.qkv(x).reshape(len(x), x.shape[1], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            kept.append((q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3))
            kept[-1].retain_grad()
            out: Tensor = attn.proj((kept[-1] @ v).transpose(1, 2).flatten(2))
            return out

        layer.forward = attend
    model.zero_grad()
    model(normalise(image_HW[None]).requires_grad_())[0, finding].backward()
    relevance = torch.eye(patches)
    for attention in kept:
        gained = torch.zeros(patches, patches)
        for head in range(attention.shape[1]):
            assert attention.grad is not None
            gained += (attention.grad[0, head] * attention[0, head].detach()).clamp(min=0) / attention.shape[1]
        relevance = relevance + gained @ relevance
    parts = (pooled[row] * (relevance[row] - torch.eye(patches)[row]) for row in range(patches))
    return sum(parts, start=torch.zeros(patches))


@pytest.mark.parametrize(("pooling", "trains"), [("mean", "all"), ("attentive", "all"), ("mean", "head")])
def test_maps_are_those_of_the_papers_equations(small_plan: Plan, pooling: str, trains: str) -> None:
    model = classifier(small_plan, pooling, trains)
    images = torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    maps = relevance_maps(model, images)
    assert maps.shape == (2, 3, model.encoder.side, model.encoder.side)
    assert float(maps.min()) >= 0
    for finding in range(3):
        slow = slow_map(classifier(small_plan, pooling, trains), images[1], finding)
        torch.testing.assert_close(maps[1, finding].flatten(), slow, atol=1e-7, rtol=1e-3)


def test_the_model_computes_as_before_afterwards(small_plan: Plan) -> None:
    model, image = classifier(small_plan, "mean"), torch.zeros(1, 32, 32, dtype=torch.uint8)
    before = [layer.fused_attn for layer in attentions(model)]
    relevance_maps(model, image)
    assert [layer.fused_attn for layer in attentions(model)] == before
    assert not any(layer.attn_drop._forward_hooks for layer in attentions(model))
    assert all(parameter.grad is None for parameter in model.parameters())
