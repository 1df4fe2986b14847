"""Opacus takes gradients picture by picture with hooks, and clips by norms without making most of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, ModelSpec, Plan
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.vit import Encoder

COUNT = 3
PICTURES = torch.randn(COUNT, 32, 32, generator=torch.Generator().manual_seed(0))
Losses = Callable[[nn.Module, slice], Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


def classifier(plan: Plan, **changes: Any) -> tuple[nn.Module, Losses]:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    model = build_classifier(plan, replace(stage, **changes))
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model, lambda module, rows: module(PICTURES[rows]).square().mean(dim=1)


def autoencoder(plan: Plan, **changes: Any) -> tuple[nn.Module, Losses]:
    mapping = to_mapping(plan)
    mapping["model"] |= changes
    model = build_autoencoder(read(Plan, mapping))
    visible, hidden = model.random_masking(COUNT, 0.75, generator(0, "masks"))
    return model, lambda module, rows: module(PICTURES[rows], visible[rows], hidden[rows], True)


MODELS: dict[str, Callable[[Plan], tuple[nn.Module, Losses]]] = {
    "full": classifier,
    "attentive": lambda plan: classifier(plan, pooling="attentive"),
    "attentive probe": lambda plan: classifier(plan, trains="head", pooling="attentive"),
    "last blocks": lambda plan: classifier(plan, trains="last", last_blocks=1),
    "lora": lambda plan: classifier(plan, trains="lora", lora_rank=2),
    "mae": autoencoder,
    "cross decoder": lambda plan: autoencoder(plan, decoder="cross"),
    "learned positions": lambda plan: autoencoder(plan, positions="learned"),
}


@pytest.mark.parametrize("name", MODELS)
def test_hooks_give_each_pictures_gradient(small_plan: Plan, name: str) -> None:
    model, losses = MODELS[name](small_plan)
    alone = []
    for picture in range(COUNT):
        model.zero_grad()
        torch.autograd.backward(losses(model, slice(picture, picture + 1)).sum())
        alone.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
    model.zero_grad()
    wrapped = GradSampleModule(model, strict=True, force_functorch=False, loss_reduction="sum")
    for module in model.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            assert type(module) in GradSampleModule.GRAD_SAMPLERS, "a module without a rule falls back to functorch"
    torch.autograd.backward(losses(wrapped, slice(None)).sum())
    parameters: dict[str, Any] = dict(model.named_parameters())  # Opacus gives them grad_sample
    for key, parameter in parameters.items():
        if parameter.requires_grad:
            for picture in range(COUNT):
                torch.testing.assert_close(parameter.grad_sample[picture], alone[picture][key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_ghost_clipping_finds_the_norms(small_plan: Plan, name: str) -> None:
    model, losses = MODELS[name](small_plan)
    expected = []
    for picture in range(COUNT):
        model.zero_grad()
        torch.autograd.backward(losses(model, slice(picture, picture + 1)).sum())
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        expected.append(float(torch.stack(squares).sum().sqrt()))
    model.zero_grad()
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="sum"
    )
    torch.autograd.backward(losses(wrapped, slice(None)).sum())
    assert wrapped.get_norm_sample().tolist() == pytest.approx(expected, rel=1e-3)


def test_all_but_a_trace_of_the_parameters_need_no_gradient_of_their_own() -> None:
    with torch.device("meta"):
        model = Classifier(Encoder(ModelSpec(encoder="vit_base"), 224), findings=14, pooling="attentive")
    ghosts = GradSampleModuleFastGradientClipping.NORM_SAMPLERS
    sizes = {True: 0, False: 0}
    for module in model.modules():
        sizes[type(module) in ghosts] += sum(parameter.numel() for parameter in module.parameters(recurse=False))
    assert sizes[False] / sum(sizes.values()) < 0.001, "LayerNorm alone"
