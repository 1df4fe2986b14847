"""The one door out: every number that leaves the hospital passes through the functions here.

They take typed fields only, round what is measured, and put counts below the hospital's minimum cell size into a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.archive.reasons import Reason
from client.dataset import Cache
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.metrics import cells
from cxrbase_model.plan import DataSpec

METRICS = frozenset({"validation_loss", "validation_auroc"})  # the only metrics that have a name outside
KINDS = ("pretrain", "finetune", "evaluate")


def bucketed(count: int, minimum_cell: int) -> int | str:
    """A count that may leave: itself, or "<N" where it is positive and below the minimum cell size N."""
    return f"<{minimum_cell}" if 0 < count < minimum_cell else count


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
        findings[finding] = cells({name: int(mask.sum()) for name, mask in masks.items()}, minimum_cell)
    return {
        "pictures": cells({split: len(cache.rows(split)) for split in ("train", "validation", "test")}, minimum_cell),
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
