"""The costs of errors against versions that loop over pictures and findings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cxrbase_model.losses import classification_costs, known_labels, masked_bce, positive_weights
from cxrbase_model.plan import Loss

NAN = math.nan
TARGETS = torch.tensor([[1, 0, NAN], [NAN] * 3, [0.5, 1, 0], [0, NAN, 1], [1, 1, 1]])
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])


def slow_cost(logit: float, target: float, weight: float, loss: Loss) -> float:
    """One finding of one picture, as the papers write it."""
    p = 1 / (1 + math.exp(-logit))
    if loss.kind == "bce":
        return -(weight * target * math.log(p) + (1 - target) * math.log(1 - p))
    shifted = max(p - loss.margin, 0.0)
    positive = -((1 - p) ** loss.focus_positive) * math.log(p)
    negative = -(shifted**loss.focus_negative) * math.log(1 - shifted)
    return float(weight * target * positive + (1 - target) * negative)


@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        Loss(kind="asymmetric"),
        Loss(kind="asymmetric", focus_positive=1.0, focus_negative=2.0, margin=0.2),
        Loss(kind="asymmetric", margin=0.0),
    ],
    ids=["bce", "asymmetric", "focused", "no margin"],
)
def test_each_known_label_costs_what_the_paper_says_and_an_unknown_one_nothing(loss: Loss) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3
    costs = classification_costs(logits, TARGETS, WEIGHTS, loss)
    for row in range(5):
        for column in range(3):
            target = float(TARGETS[row, column])
            expected = 0.0
            if not math.isnan(target):
                expected = slow_cost(float(logits[row, column]), target, float(WEIGHTS[column]), loss)
            assert float(costs[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_without_focus_and_margin_the_asymmetric_loss_is_cross_entropy() -> None:
    plain = Loss(kind="asymmetric", focus_positive=0.0, focus_negative=0.0, margin=0.0)
    logits = torch.randn(5, 3) * 4
    torch.testing.assert_close(
        classification_costs(logits, TARGETS, WEIGHTS, plain), classification_costs(logits, TARGETS, WEIGHTS, Loss())
    )


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
def test_certain_predictions_have_finite_costs_and_gradients(kind: str) -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, NAN], [1.0, 0.0, NAN]])
    costs = classification_costs(logits, targets, None, Loss(kind=kind))
    torch.autograd.backward(costs.sum())
    assert logits.grad is not None
    assert bool(torch.isfinite(costs).all())
    assert bool(torch.isfinite(logits.grad).all())


def test_the_mean_is_over_known_labels() -> None:
    logits = torch.randn(5, 3)
    costs = classification_costs(logits, TARGETS, WEIGHTS, Loss())
    assert int(known_labels(TARGETS)) == 10
    assert float(masked_bce(logits, TARGETS, WEIGHTS)) == pytest.approx(float(costs.sum()) / 10)


def test_an_unknown_label_has_no_gradient_and_a_batch_without_labels_is_harmless() -> None:
    logits = torch.randn(2, 2, requires_grad=True)
    torch.autograd.backward(masked_bce(logits, torch.tensor([[1.0, NAN], [NAN, NAN]])))
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, False]]
    empty = masked_bce(logits, torch.full((2, 2), NAN))
    assert float(empty.detach()) == 0.0


def test_positive_weights_are_negatives_over_positives_within_bounds() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [NAN, 0, NAN], [0, NAN, 0]], np.float32)
    assert positive_weights(labels, 4.0).tolist() == [3.0, 1.0, 4.0]
