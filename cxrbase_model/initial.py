"""The weights that a stage starts from: its own seed's, an earlier stage's, or weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.export import ExportError, read_encoder
from cxrbase_model.features import FeaturePredictor, build_objective
from cxrbase_model.foreign import WeightsError
from cxrbase_model.lora import merged
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.state import State, load_state, mismatch, state_of, with_prefix
from cxrbase_model.weights import read_file, read_timm


class InitError(ValueError):
    """The weights that `init` names cannot start the stage; the message names both."""


def build_model(plan: Plan, stage: PretrainStage | FinetuneStage) -> MaskedAutoencoder | Classifier:
    """A training stage's model, initialised from the plan's seed."""
    return build_classifier(plan, stage) if isinstance(stage, FinetuneStage) else build_objective(plan, stage)


def initial_state(plan: Plan, stage: PretrainStage | FinetuneStage, finished: Callable[[str], State]) -> State:
    """The stage's model, seeded by the plan, its encoder taken from where `init` says.

    finished: the final weights of an earlier stage, by its name. InitError where the named encoder is missing or of another
    shape than the plan's model.
    """
    model = build_model(plan, stage)
    state = state_of(model)
    source = _source(plan, stage, finished)
    if source is None:
        return state | (_statistics({}, state, stage) if isinstance(stage, FinetuneStage) and stage.standardise else {})
    if mismatch(source, state) is None:
        return source  # the same kind of stage goes on: its decoder or head goes on too
    encoder = with_prefix(merged(source), "encoder.")
    if mismatch(encoder, with_prefix(merged(state), "encoder.")):
        raise InitError(
            f"stage {stage.name}: the encoder named by init {stage.init!r} has another shape than the plan's"
        )
    if isinstance(stage, FinetuneStage) and stage.standardise:
        encoder |= _statistics(source, state, stage)
    load_state(model, {**state, **encoder})
    if isinstance(model, FeaturePredictor):
        model.start_teacher()
    return state_of(model)


def _statistics(source: State, state: State, stage: FinetuneStage) -> State:
    found, wanted = with_prefix(source, "standard."), with_prefix(state, "standard.")
    if mismatch(found, wanted):
        raise InitError(
            f"stage {stage.name}: standardise: expected statistics of features beside the encoder named by init {stage.init!r}, "
            f"found {'none' if not found else 'those of another shape'}"
        )
    return found


def _source(plan: Plan, stage: PretrainStage | FinetuneStage, finished: Callable[[str], State]) -> State | None:
    earlier = plan.source(stage)
    if earlier is not None:
        return finished(earlier)
    kind, _, name = stage.init.partition(":")
    if kind == "random":
        return None
    try:
        if kind == "timm":
            return read_timm(name, plan.model, plan.data.image_size)
        path = Path(name)
        return read_encoder(path, plan) if path.is_dir() else read_file(path, plan.model, plan.data.image_size)
    except (ExportError, WeightsError) as error:
        raise InitError(f"stage {stage.name}: init: {error}") from None
