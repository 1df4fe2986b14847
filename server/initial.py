"""The weights that each stage starts from."""

from __future__ import annotations

from cxrbase_model import initial
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.state import State
from server.store import RunStore, StoreError


def initial_state(plan: Plan, stage: PretrainStage | FinetuneStage, store: RunStore) -> State:
    """As `cxrbase_model.initial.initial_state`, earlier stages out of the run directory; StoreError where there is no such start."""
    try:
        return initial.initial_state(plan, stage, store.stage_state)
    except initial.InitError as error:
        raise StoreError(str(error)) from None
