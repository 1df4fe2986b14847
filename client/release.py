"""The one door out: every number that leaves the hospital passes through the functions here, last through `leave`.

They take typed fields only, round what is measured, and put counts below the hospital's minimum cell size into a bucket. `leave` writes
the ledger's line before the reply goes. A refusal carries a code and nothing else; it has a line in the hospital's log.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.archive.reasons import Reason
from client.budget import ledger_of, line_of
from client.dataset import Cache
from client.ledger import LEFT, Entry
from client.policy import Refused, check_plan
from client.site import Site
from cxrbase_model.messages import METRICS, Code, Reply, Task
from cxrbase_model.metrics import cells, counted
from cxrbase_model.plan import DataSpec, Plan
from cxrbase_model.secure.letters import STEPS
from cxrbase_model.told import check_description, check_evaluation

KINDS = ("pretrain", "finetune", "evaluate")

log = logging.getLogger("cxrbase.client")


def leave(reply: Reply, task: Task, site: Site, began: int | None = None) -> Reply:
    """Let a reply go, after a line about it was added to the ledger; Refused or an error where it may not go, and nothing leaves.

    began: how many lines the ledger had when the task began; None for an answer that was kept from before.
    """
    plan = check_plan(task)
    reply = without_guarantee(reply, plan)
    _check_fields(reply, task, plan)

    def line(entries: list[Entry]) -> Entry:
        entry = line_of(site, task, _KIND_OF.get(reply.kind, "unprotected"))
        entry = replace(entry, left=_fields(reply), bytes=_bytes(reply), examples=reply.examples)
        mine = [each for each in entries if each.same_task(entry)]
        if began is None and any(each.kind in LEFT for each in mine):
            return replace(entry, kind="again")
        if entry.kind != "unprotected":
            return entry
        reserved = [each for each in mine if each.kind == "reserve" and began is not None and each.number > began]
        return _committed(entry, reserved) if reserved else _unprotected(entry, plan, site)

    ledger_of(site).add(line)
    return reply


def without_guarantee(reply: Reply, plan: Plan) -> Reply:
    """Under a plan with a guarantee, a training's loss and rates stay: they are computed from pictures, and no noise is added to them."""
    if plan.privacy is None or reply.kind not in ("pretrain", "finetune"):
        return reply
    return replace(reply, loss=None, metrics={})


def _committed(entry: Entry, reserved: list[Entry]) -> Entry:
    last = reserved[-1]
    return replace(
        entry, kind="commit", reservations=tuple(each.number for each in reserved), unit=last.unit, noise=last.noise,
        rate=last.rate, steps=sum(each.steps or 0 for each in reserved), accountant=last.accountant,
        epsilon_of=last.epsilon_of, delta=last.delta, before=reserved[0].before, after=last.after,
    )  # fmt: skip


def _unprotected(entry: Entry, plan: Plan, site: Site) -> Entry:
    """The line of an update that no reservation was made for; Refused where one should have been."""
    if plan.privacy is not None or site.policy.epsilon is not None:
        log.error("round %d: no privacy was reserved for this update; it does not leave", entry.round)
        raise Refused(Code.BUDGET)
    return replace(entry, after=math.inf, epsilon_of=site.policy.unit)


_KIND_OF = {"describe": "description", "evaluate": "evaluation", **dict.fromkeys(STEPS, "exchange")}


def _check_fields(reply: Reply, task: Task, plan: Plan) -> None:
    """ValueError unless each field holds what it may; the texts name no value, since they may hold anything."""
    if set(reply.metrics) - METRICS or not all(math.isfinite(value) for value in reply.metrics.values()):
        raise ValueError(f"metrics hold more than {', '.join(sorted(METRICS))}")
    holds = {
        "describe": reply.description, "evaluate": reply.evaluation, "pretrain": reply.update, "finetune": reply.update,
        **dict.fromkeys(STEPS, reply.update),
    }  # fmt: skip
    if reply.code is not None or reply.kind != task.kind or not holds.get(reply.kind):
        raise ValueError("a reply to the task holds nothing of its kind")
    if any(value for value in holds.values() if value is not holds[reply.kind]):
        raise ValueError("a reply to the task holds something of another kind")
    if reply.evaluation is not None:
        check_evaluation(reply.evaluation, plan.data.findings)
    if reply.description is not None:
        check_description(reply.description, plan.data.findings)
        if not set(reply.description.get("exclusions", ())) <= {reason.value for reason in Reason}:
            raise ValueError("a description's exclusions holds other things than it may")


def _fields(reply: Reply) -> tuple[str, ...]:
    """What a reply holds of this hospital, by name."""
    names = ("update", "loss", "evaluation", "description")
    held = [name for name in names if getattr(reply, name) not in (None, b"")]
    return (*held, *sorted(reply.metrics))


def _bytes(reply: Reply) -> int:
    header = {name: value for name, value in vars(reply).items() if name != "update"}
    return len(reply.update) + len(json.dumps(header))


def bucketed(count: int, minimum_cell: int) -> int | str:
    """A count that may leave: itself, or "<N" where it is positive and below the minimum cell size N."""
    return f"<{minimum_cell}" if 0 < count < minimum_cell else count


def too_few(patients: NDArray[np.int64], least: int) -> bool:
    """Whether something measured on these pictures, given by their patients, would be of fewer patients than may be."""
    return len(np.unique(patients)) < max(1, least)


def refusal(site: str, task: Task, code: Code) -> Reply:
    """The reply that carries a code and nothing else."""
    return Reply(site=site, kind=task.kind, round=task.round, stage=task.stage, plan_digest=task.plan_digest, code=code)


def description(site: str, task: Task, cache: Cache, minimum_cell: int) -> Reply:
    """What the consortium is told about a hospital's cache: bucketed counts and the tasks it can take part in."""
    content = describe_cache(cache, minimum_cell)
    return Reply(
        site=site, kind=task.kind, round=task.round, stage=task.stage, plan_digest=task.plan_digest, description=content
    )


def describe_cache(cache: Cache, minimum_cell: int) -> dict[str, Any]:
    """Counts of pictures, patients, findings and exclusions, each bucketed."""
    labelled: NDArray[np.bool_] = np.asarray(np.isfinite(cache.labels).any(axis=1))
    train, test = cache.rows("train"), cache.rows("test")
    able = {"pretrain": len(train) > 0, "finetune": bool(labelled[train].any()), "evaluate": bool(labelled[test].any())}
    findings = {}
    for column, finding in enumerate(cache.spec.findings):
        values = cache.labels[:, column]
        masks = {"positive": values >= 0.5, "negative": values < 0.5, "unknown": np.isnan(values)}
        counts = {name: counted(cache.patients[mask], minimum_cell) for name, mask in masks.items()}
        findings[finding] = cells(counts, minimum_cell)
    splits = {
        split: counted(cache.patients[cache.rows(split)], minimum_cell) for split in ("train", "validation", "test")
    }
    return {
        "pictures": cells(splits, minimum_cell),
        "patients": bucketed(len(np.unique(cache.patients)), minimum_cell),
        "findings": findings,
        "exclusions": {Reason(r).value: bucketed(count, minimum_cell) for r, count in sorted(cache.exclusions.items())},
        "image_size": cache.spec.image_size,
        "kinds": [kind for kind in KINDS if able[kind]],
    }


def trained(
    site: str, task: Task, packed: bytes, *, examples: int, steps: int, loss: float, seconds: float,
    metrics: Mapping[str, float], control_round: int = 0,
) -> Reply:  # fmt: skip
    """An update, packed as the plan says, with the few numbers that may accompany it; ValueError for a metric that has no name outside."""
    unknown = set(metrics) - METRICS
    if unknown:
        raise ValueError(f"{len(unknown)} metrics are not among those that may leave: {', '.join(sorted(METRICS))}")
    return Reply(
        site=site, kind=task.kind, round=task.round, stage=task.stage, plan_digest=task.plan_digest,
        examples=examples, steps=steps, loss=_rounded(loss), seconds=round(seconds, 2),
        metrics={name: _rounded(value) for name, value in metrics.items() if math.isfinite(value)}, update=packed,
        control_round=control_round,
    )  # fmt: skip


def protected(site: str, task: Task, packed: bytes, *, examples: int, steps: int) -> Reply:
    """The update of a training under a plan's `privacy:`. Nothing that was measured of it leaves: no noise is on a loss, a score or a time.

    examples: what follows from the plan and the number of steps alone.
    """
    return Reply(
        site=site, kind=task.kind, round=task.round, stage=task.stage, plan_digest=task.plan_digest,
        examples=examples, steps=steps, update=packed,
    )  # fmt: skip


def secured(site: str, task: Task, letter: bytes, *, seconds: float = 0.0, metrics: Mapping[str, float] = MappingProxyType({})) -> Reply:  # fmt: skip
    """A letter or a masked update of secure aggregation; neither examples nor a loss, which leave in the sum alone.

    `metrics` are of the weights that arrived; ValueError as in `trained`.
    """
    whole = trained(site, task, letter, examples=0, steps=0, loss=0.0, seconds=seconds, metrics=metrics)
    return replace(whole, loss=None)


def evaluated(site: str, task: Task, evaluation: dict[str, Any], *, examples: int, seconds: float) -> Reply:
    """An evaluation as `metrics.evaluate_scores` made it, its small cells already bucketed."""
    return Reply(
        site=site, kind=task.kind, round=task.round, stage=task.stage, plan_digest=task.plan_digest,
        examples=examples, seconds=round(seconds, 2), evaluation=evaluation,
    )  # fmt: skip


def measurable(labels_NC: NDArray[np.float32], spec: DataSpec, minimum_cell: int) -> list[int]:
    """The findings whose positives and negatives are both at least a minimum cell."""
    positives, negatives = (labels_NC >= 0.5).sum(axis=0), (labels_NC < 0.5).sum(axis=0)
    return [c for c in range(len(spec.findings)) if min(positives[c], negatives[c]) >= minimum_cell]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
