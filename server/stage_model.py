"""The network that a stage trains, for what the server has to know of it: which of its tensors move."""

from __future__ import annotations

from torch import nn

from cxrbase_model.classifier import build_classifier
from cxrbase_model.features import build_objective
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage


def stage_model(plan: Plan, stage: PretrainStage | FinetuneStage) -> nn.Module:
    """The stage's network with what it does not train frozen."""
    return build_classifier(plan, stage) if isinstance(stage, FinetuneStage) else build_objective(plan, stage)
