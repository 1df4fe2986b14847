"""SCAFFOLD's control variate of the server (aggregation.scaffold): the mean of those of all hospitals that a stage's rounds have taken in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from cxrbase_model.plan import EvaluateStage, Plan, Round
from cxrbase_model.state import State
from cxrbase_model.variates import PREFIX, controlled, prefixed
from server.records import Record
from server.stage_model import stage_model

KEPT, ANEW = "kept", "anew"  # `variates` in a round's record


def first_variates(plan: Plan, item: Round) -> State:
    """The zeros that a stage begins with, by the names that they travel by; none where the plan has no SCAFFOLD, or nothing is trained."""
    if not plan.aggregation.scaffold or isinstance(item.stage, EvaluateStage):
        return {}
    return prefixed(controlled(stage_model(plan, item.stage), plan.aggregation))


def taken_in(records: list[Record], stage: str) -> dict[str, int]:
    """Hospital to the last round of the stage that took in its reply, since all last began anew."""
    found: dict[str, int] = {}
    for record in records:
        if record["stage"] != stage:
            continue
        found |= {line["site"]: record["stage_round"] for line in record["hospitals"] if line["status"] == "admitted"}
        if record.get("variates") == ANEW:
            found.clear()
    return found


def outcome(known: Mapping[str, int], entries: list[Record]) -> str:
    """KEPT where each hospital of a round went on from the variate that the server has of it, else ANEW: the mean cannot be told any more."""
    went_on = all(
        line["control_round"] == known.get(line["site"], 0) for line in entries if line["status"] == "admitted"
    )
    return KEPT if went_on else ANEW


def advanced(variates: State, update: State, known: Collection[str], entries: list[Record], found: str) -> State:
    """The variates after a round, of those before it and the mean change in `update`, which loses them.

    known: hospitals that earlier rounds have taken in. entries: the round's; those admitted weigh alike. found: as `outcome` has it; ANEW is zeros.
    A hospital counts from the first round that takes it in; the paper counts all from the start, which is the same where all take part in the first.
    """
    admitted = [line["site"] for line in entries if line["status"] == "admitted"]
    both = len({*known, *admitted})
    after: State = {}
    for name, tensor in variates.items():
        change = update.pop(name)
        whole = len(known) * tensor.double() + len(admitted) * change.double()
        after[name] = whole.div_(both).float() if found == KEPT else torch.zeros_like(tensor)
    return after


def variates_of(memory: State) -> State:
    """The part of what a checkpoint remembers that are variates."""
    return {name: tensor for name, tensor in memory.items() if name.startswith(PREFIX)}
