"""The reference network: a usual one, through the same loop."""

from __future__ import annotations

import pytest
import torch

from cxrbase_model.engine import Progress, Runtime, finetune
from cxrbase_model.plan import FinetuneStage, Optimizer
from cxrbase_model.predict import predict
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import digest, load_state, state_of
from sim.reference import build_reference
from sim.study import Reference


def test_a_reference_network_learns_to_tell_bright_pictures_from_dark_ones() -> None:
    pictures = torch.randint(0, 120, (16, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures[::2] += 130
    labels = torch.tensor([1.0, 0.0]).repeat(8)[:, None]
    model = build_reference("resnet18", 1, seed=0)
    runtime, stage = Runtime(torch.device("cpu")), FinetuneStage(optimizer=Optimizer(lr=8e-3, beta2=0.999))
    finetune(model, [(pictures, labels)] * 8, stage, torch.ones(1), Progress(0, 8), seed=0, runtime=runtime)
    chances = predict(model, [pictures], runtime)[:, 0]
    assert chances[::2].min() > chances[1::2].max()


def test_the_seed_alone_says_where_a_reference_starts_and_its_state_comes_back() -> None:
    torch.manual_seed(5)
    first = build_reference("resnet18", 1, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # torch's own generator is where it was
    assert digest(state_of(first)) == digest(state_of(build_reference("resnet18", 1, seed=3)))
    other = build_reference("resnet18", 1, seed=4)
    assert digest(state_of(first)) != digest(state_of(other))
    load_state(other, state_of(first))
    assert digest(state_of(first)) == digest(state_of(other))


def test_a_network_that_timm_does_not_know_is_named() -> None:
    with pytest.raises(SettingsError, match="network: expected a name of timm's, such as resnet18; found 'resnet17'"):
        Reference(network="resnet17")
