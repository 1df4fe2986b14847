"""Multi-label classification: the encoder, the mean of its patch features, one logit a finding.

Shapes as in `vit.py`; C is the number of findings. Labels are 1, 0, a probability between, or NaN where unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.seeds import generator
from cxrbase_model.vit import Encoder, initialise, patchify


class Classifier(nn.Module):
    """Encoder, mean pooling, LayerNorm and a linear head."""

    def __init__(self, encoder: Encoder, findings: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.embed.out_features
        self.head_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, findings)

    def forward(self, images_BHW: Tensor) -> Tensor:
        """Normalised pictures [B, H, W] to logits [B, C]."""
        features = self.encoder(patchify(images_BHW, self.encoder.patch))
        logits: Tensor = self.head(self.head_norm(features.mean(dim=1)))
        return logits


def build_classifier(plan: Plan, stage: FinetuneStage) -> Classifier:
    """The plan's classifier, initialised from the plan's seed; two stages of a plan start from the same weights."""
    model = Classifier(Encoder(plan.model, plan.data.image_size, stage.drop_path), len(plan.data.findings))
    initialise(model, generator(plan.seed, "initial weights", "classifier"))
    nn.init.zeros_(model.head.weight)
    return model


def masked_bce(logits_BC: Tensor, targets_BC: Tensor, positive_weights_C: Tensor | None = None) -> Tensor:
    """Binary cross-entropy averaged over the known labels; NaN targets count for nothing.

    Zero (with a gradient of zero) where no label of the batch is known.
    """
    known = torch.isfinite(targets_BC)
    targets = torch.where(known, targets_BC, torch.zeros_like(targets_BC))
    losses = F.binary_cross_entropy_with_logits(
        logits_BC.float(), targets, pos_weight=positive_weights_C, reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)
