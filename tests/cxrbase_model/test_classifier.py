"""The classifier and its loss on partial labels."""

from __future__ import annotations

import math

import pytest
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.losses import masked_bce
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.state import state_of, with_prefix


def stage(plan: Plan) -> FinetuneStage:
    found = plan.stage("detect")
    assert isinstance(found, FinetuneStage)
    return found


def test_the_loss_is_the_mean_over_known_labels() -> None:
    logits = torch.randn(5, 3)
    targets = torch.tensor([[1, 0, math.nan], [math.nan] * 3, [0.5, 1, 0], [0, math.nan, 1], [1, 1, 1]])
    weights = torch.tensor([1.0, 2.0, 4.0])
    total, count = 0.0, 0
    for row in range(5):
        for column in range(3):
            target = float(targets[row, column])
            if not math.isnan(target):
                p = 1 / (1 + math.exp(-float(logits[row, column])))
                total -= float(weights[column]) * target * math.log(p) + (1 - target) * math.log(1 - p)
                count += 1
    assert float(masked_bce(logits, targets, weights)) == pytest.approx(total / count, rel=1e-5)


def test_an_unknown_label_has_no_gradient_and_a_batch_without_labels_is_harmless() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    masked_bce(logits, torch.tensor([[1.0, math.nan], [math.nan, math.nan]])).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]
    empty = masked_bce(logits, torch.full((2, 2), math.nan))
    assert float(empty.detach()) == 0.0


def test_it_starts_undecided_and_shares_the_encoders_names_with_the_autoencoder(small_plan: Plan) -> None:
    from cxrbase_model.mae import build_autoencoder

    model = build_classifier(small_plan, stage(small_plan))
    assert torch.equal(model(torch.randn(2, 32, 32)), torch.zeros(2, 3))
    own, other = state_of(model), state_of(build_autoencoder(small_plan))
    assert with_prefix(own, "encoder.").keys() == with_prefix(other, "encoder.").keys()
