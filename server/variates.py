"""SCAFFOLD's control variate of the server (aggregation.scaffold): the mean of those of all hospitals that a stage's rounds have taken in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cxrbase_model.plan import EvaluateStage, Plan, Round
from cxrbase_model.state import State
from cxrbase_model.variates import PREFIX, controlled, prefixed
from server.stage_model import stage_model


def first_variates(plan: Plan, item: Round) -> State:
    """The zeros that a stage begins with, by the names that they travel by; none where the plan has no SCAFFOLD, or nothing is trained."""
    if not plan.aggregation.scaffold or isinstance(item.stage, EvaluateStage):
        return {}
    return prefixed(controlled(stage_model(plan, item.stage), plan.aggregation))


def taken_in(records: list[dict[str, Any]], stage: str) -> dict[str, int]:
    """Hospital to the last round of the stage that took in its reply."""
    return {
        line["site"]: record["stage_round"]
        for record in records
        if record["stage"] == stage
        for line in record["hospitals"]
        if line["status"] == "admitted"
    }


def advanced(variates: State, update: State, known: Collection[str], admitted: Collection[str]) -> State:
    """The variates after a round, of those before it and the mean change in `update`, which loses them.

    known: hospitals that earlier rounds of the stage have taken in. admitted: those of this round, all weighing alike. A hospital counts from the
    first round that takes it in; the paper counts all from the start, which is the same where all take part in the first.
    """
    both = len({*known, *admitted})
    after: State = {}
    for name, tensor in variates.items():
        whole = len(known) * tensor.double() + len(admitted) * update.pop(name).double()
        after[name] = whole.div_(both).float()
    return after


def variates_of(memory: State) -> State:
    """The part of what a checkpoint remembers that are variates."""
    return {name: tensor for name, tensor in memory.items() if name.startswith(PREFIX)}
