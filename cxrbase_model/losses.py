"""What an error costs, for labels of which many are unknown (NaN): one cost a finding of a picture, zero where unknown.

C is the number of findings. Targets are 1, 0, a probability between, or NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cxrbase_model.plan import Loss


def classification_costs(logits_BC: Tensor, targets_BC: Tensor, weights_C: Tensor | None, loss: Loss) -> Tensor:
    """The costs [B, C] that a plan's `loss` asks for; `weights_C` multiply what positives cost."""
    known = torch.isfinite(targets_BC)
    targets = torch.where(known, targets_BC, torch.zeros_like(targets_BC))
    if loss.kind == "asymmetric":
        costs = _asymmetric(logits_BC.float(), targets, weights_C, loss)
    else:
        costs = F.binary_cross_entropy_with_logits(logits_BC.float(), targets, pos_weight=weights_C, reduction="none")
    return costs * known


def masked_bce(logits_BC: Tensor, targets_BC: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """Binary cross-entropy averaged over the known labels; NaN targets count for nothing.

    Zero (with a gradient of zero) where no label of the batch is known.
    """
    costs = classification_costs(logits_BC, targets_BC, weights_C, Loss())
    return costs.sum() / known_labels(targets_BC)


def known_labels(targets_BC: Tensor) -> Tensor:
    """How many labels are known, at least 1: what a sum of costs is divided by."""
    return torch.isfinite(targets_BC).sum().clamp(min=1)


def positive_weights(
    labels_NC: NDArray[np.float32], cap: float, chances_N: NDArray[np.float64] | None = None
) -> Tensor:
    """The weight of positives per finding: negatives over positives among the known, from 1 to the cap.

    chances_N: how pictures are drawn (`rows.finding_chances`), where they are not taken in turn: counts are then of what comes.
    """
    often = np.ones(len(labels_NC)) if chances_N is None else len(labels_NC) * chances_N
    positives, negatives = (often @ known for known in (labels_NC >= 0.5, labels_NC < 0.5))
    return torch.from_numpy(np.clip(negatives / np.maximum(positives, 1), 1.0, cap).astype(np.float32))


def _asymmetric(logits_BC: Tensor, targets_BC: Tensor, weights_C: Tensor | None, loss: Loss) -> Tensor:
    """Focused cross-entropy with a margin for negatives (Ridnik et al. 2021, arXiv 2009.14119, equations 4 to 7)."""
    chance = torch.sigmoid(logits_BC)
    positive = -((1 - chance) ** loss.focus_positive) * F.logsigmoid(logits_BC)
    if weights_C is not None:
        positive = positive * weights_C
    shifted = (chance - loss.margin).clamp(min=0)
    away = F.logsigmoid(-logits_BC) if loss.margin == 0 else torch.log1p(-shifted)  # exact where 1 - chance rounds to 0
    negative = -(shifted**loss.focus_negative) * away
    return targets_BC * positive + (1 - targets_BC) * negative
