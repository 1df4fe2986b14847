"""The weights that each stage starts from."""

from __future__ import annotations

from pathlib import Path

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.features import FeaturePredictor, build_objective
from cxrbase_model.lora import merged
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage
from cxrbase_model.state import State, load_state, mismatch, state_of, with_prefix
from server.store import RunStore, StoreError


def initial_state(plan: Plan, stage: PretrainStage | FinetuneStage, store: RunStore) -> State:
    """The stage's model, seeded by the plan, its encoder taken from where `init` says.

    StoreError where the named encoder is missing or of another shape than the plan's model.
    """
    model: Classifier | MaskedAutoencoder
    model = build_classifier(plan, stage) if isinstance(stage, FinetuneStage) else build_objective(plan, stage)
    state = state_of(model)
    source = _source(plan, stage, store)
    if source is None:
        return state
    if mismatch(source, state) is None:
        return source  # the same kind of stage goes on: its decoder or head goes on too
    encoder = with_prefix(merged(source), "encoder.")
    own = with_prefix(merged(state), "encoder.")
    if mismatch(encoder, own):
        raise StoreError(
            f"stage {stage.name}: the encoder named by init {stage.init!r} has another shape than the plan's"
        )
    load_state(model, {**state, **encoder})
    if isinstance(model, FeaturePredictor):
        model.start_teacher()
    return state_of(model)


def _source(plan: Plan, stage: PretrainStage | FinetuneStage, store: RunStore) -> State | None:
    if stage.init == "random":
        return None
    if stage.init.startswith(("file:", "timm:")):
        return _foreign(plan, stage)
    if stage.init.startswith("stage:"):
        return store.stage_state(stage.init.removeprefix("stage:"))
    earlier = [other.name for other in plan.stages[: plan.stages.index(stage)] if not isinstance(other, EvaluateStage)]
    return store.stage_state(earlier[-1])


def _foreign(plan: Plan, stage: PretrainStage | FinetuneStage) -> State:
    from cxrbase_model.export import ExportError, read_encoder  # imported here: only these choices need them
    from cxrbase_model.foreign import WeightsError
    from cxrbase_model.weights import read_file, read_timm

    kind, _, name = stage.init.partition(":")
    try:
        if kind == "timm":
            return read_timm(name, plan.model, plan.data.image_size)
        path = Path(name)
        return read_encoder(path, plan) if path.is_dir() else read_file(path, plan.model, plan.data.image_size)
    except (ExportError, WeightsError) as error:
        raise StoreError(f"stage {stage.name}: init: {error}") from None
