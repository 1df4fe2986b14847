"""The schedule and the parameter groups, checked by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.optim import adamw, layer_of, learning_rate, parameter_groups, set_rate
from cxrbase_model.plan import FinetuneStage, Optimizer, Plan


def test_the_rate_warms_up_linearly_then_falls_by_a_cosine() -> None:
    settings = Optimizer(lr=0.256, warmup=0.1, min_lr=0.01)
    rates = [learning_rate(step, 100, settings, batch_size=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.001 + 0.099 / 2)
    assert rates[99] == pytest.approx(0.001, rel=0.05)
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates[9:]))


def test_the_rate_depends_on_the_global_step_alone() -> None:
    settings = Optimizer()
    whole = [learning_rate(step, 30, settings, 64) for step in range(30)]
    rounds = [learning_rate(first + step, 30, settings, 64) for first in (0, 10, 20) for step in range(10)]
    assert whole == rounds


def test_beyond_the_end_the_rate_stays_at_its_lowest() -> None:
    assert learning_rate(500, 100, Optimizer(lr=0.256, min_lr=0.5), 256) == pytest.approx(0.128)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("encoder.embed.weight", 0), ("encoder.blocks.0.norm1.weight", 1), ("encoder.blocks.11.mlp.fc1.bias", 12),
     ("encoder.norm.weight", 13), ("head.weight", 13), ("decoder_blocks.0.attn.qkv.weight", 13)],
)  # fmt: skip
def test_layers_count_from_the_patch_embedding_to_the_head(name: str, layer: int) -> None:
    assert layer_of(name, depth=12) == layer


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(small_plan: Plan) -> None:
    stage = small_plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    model = build_classifier(small_plan, stage)
    groups = parameter_groups(model, 0.05, 0.5, depth=2)
    placed = [parameter for group in groups for parameter in group["params"]]
    assert len(placed) == len({id(parameter) for parameter in placed}) == len(list(model.parameters()))
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    scales = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    assert scales[id(model.head.weight)] == 1.0
    assert scales[id(model.get_parameter("encoder.blocks.1.mlp.fc1.weight"))] == 0.5
    assert scales[id(model.encoder.embed.weight)] == 0.125


def test_each_group_gets_its_share_of_the_rate() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "scale": scale} for scale in (1.0, 0.5)
    ]
    optimizer = adamw(groups, Optimizer(), torch.device("cpu"))
    set_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
