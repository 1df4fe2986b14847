"""What an evaluation and a description may hold, checked at the door: known names, numbers and buckets, and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from client.archive.reasons import Reason

_BUCKET = re.compile(r"(<|>=)\d{1,4}")
_RATES = ("average_precision", "brier", "calibration_error", "prevalence")
_INTERVAL = {"value", "low", "high"}
_KINDS = {"pretrain", "finetune", "evaluate"}
_SPLITS = {"train", "validation", "test"}


def check_evaluation(found: Mapping[str, Any], findings: Sequence[str]) -> None:
    """ValueError unless an evaluation holds what `metrics.evaluate_scores` makes; the text names no value, for it may hold anything."""
    _keys(found, {"examples", "patients", "mean_auroc", "findings"}, "an evaluation")
    _count(found["examples"])
    _count(found["patients"])
    _interval(found["mean_auroc"])
    _keys(found["findings"], set(findings), "an evaluation's findings")
    for cell in found["findings"].values():
        measured = _RATES if len(cell) > 3 else ()
        _keys(cell, {"auroc", "positives", "negatives", *measured}, "a finding")
        _interval(cell["auroc"])
        _count(cell["positives"])
        _count(cell["negatives"])
        for name in measured:
            _number(cell[name])


def check_description(found: Mapping[str, Any], findings: Sequence[str]) -> None:
    """ValueError unless a description holds what `release.describe_cache` makes."""
    wanted = {"pictures", "patients", "findings", "exclusions", "image_size", "kinds"}
    _keys(found, wanted, "a description")
    _keys(found["pictures"], _SPLITS, "a description's splits")
    _keys(found["findings"], set(findings), "a description's findings")
    _within(found["exclusions"], {reason.value for reason in Reason}, "a description's exclusions")
    _within(found["kinds"], _KINDS, "a description's kinds")
    for cell in found["findings"].values():
        _keys(cell, {"positive", "negative", "unknown"}, "a finding")
    counts = (cell.values() for cell in (found["pictures"], found["exclusions"], *found["findings"].values()))
    for count in (found["patients"], found["image_size"], *(one for some in counts for one in some)):
        _count(count)


def _keys(found: object, wanted: set[str], what: str) -> None:
    if not isinstance(found, Mapping) or set(found) != wanted:
        raise ValueError(f"{what} holds other things than it may")


def _within(found: Any, known: set[str], what: str) -> None:
    if not set(found) <= known:
        raise ValueError(f"{what} holds other things than it may")


def _count(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, str) and _BUCKET.fullmatch(value)):
        raise ValueError("a count is neither a number nor a bucket")


def _number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise ValueError("a rate is no number")


def _interval(value: Any) -> None:
    if value is None:
        return
    _keys(value, _INTERVAL, "an interval")
    for each in value.values():
        _number(each)
