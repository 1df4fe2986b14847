"""The network that a stage trains, for what the server has to know of it: which of its tensors move."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from cxrbase_model.classifier import build_classifier
from cxrbase_model.features import FeaturePredictor, build_objective
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, Stage
from cxrbase_model.state import state_of


def stage_model(plan: Plan, stage: PretrainStage | FinetuneStage) -> nn.Module:
    """The stage's network with what it does not train frozen."""
    return build_classifier(plan, stage) if isinstance(stage, FinetuneStage) else build_objective(plan, stage)


def averages(stage: Stage) -> tuple[str, ...]:
    """What the names of the tensors of a stage's network begin with that only follow others, as averages of past weights."""
    features = isinstance(stage, PretrainStage) and stage.objective == "features"
    return FeaturePredictor.moves if features else ()


def unmatched(plan: Plan) -> str:
    """What is wrong with aggregation.keep_local: a pattern that names no tensor of any stage, or patterns that leave none; else ""."""
    if not plan.aggregation.keep_local:
        return ""
    names = sorted({n for s in plan.stages if not isinstance(s, EvaluateStage) for n in state_of(stage_model(plan, s))})
    for pattern in plan.aggregation.keep_local:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(sorted({name.split(".")[0] for name in names}))
            return f"aggregation.keep_local: expected a pattern for names that begin with {some}; found {pattern!r}, which matches none"
    if all(map(plan.aggregation.is_local, names)):
        return f"aggregation.keep_local: expected patterns that leave something to share; found {list(plan.aggregation.keep_local)}, which match all"
    return ""
