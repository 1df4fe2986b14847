"""The weights that each stage starts from."""

from __future__ import annotations

from pathlib import Path

from cxrbase_model.classifier import build_classifier
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.state import State, mismatch, state_of, with_prefix
from server.store import RunStore, StoreError


def initial_state(plan: Plan, stage: PretrainStage | FinetuneStage, store: RunStore) -> State:
    """The stage's model, seeded by the plan, its encoder taken from where `init` says.

    StoreError where the named encoder is missing or of another shape than the plan's model.
    """
    model = build_classifier(plan, stage) if isinstance(stage, FinetuneStage) else build_autoencoder(plan)
    state = state_of(model)
    source = _source(plan, stage, store)
    if source is None:
        return state
    if source.keys() == state.keys() and mismatch(source, state) is None:
        return source  # the same kind of stage goes on: its decoder or head goes on too
    encoder = with_prefix(source, "encoder.")
    if mismatch(encoder, with_prefix(state, "encoder.")):
        raise StoreError(
            f"stage {stage.name}: the encoder named by init {stage.init!r} has another shape than the plan's"
        )
    return {**state, **encoder}


def _source(plan: Plan, stage: PretrainStage | FinetuneStage, store: RunStore) -> State | None:
    if stage.init.startswith("file:"):
        from cxrbase_model.export import read_encoder  # imported here: only this choice needs it

        return read_encoder(Path(stage.init.removeprefix("file:")), plan)
    name = plan.source(stage)
    return store.stage_state(name) if name is not None else None
