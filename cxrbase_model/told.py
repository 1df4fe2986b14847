"""What a hospital tells beside its updates, checked where it leaves and where it arrives: known names, numbers and buckets, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BUCKET = re.compile(r"(<|>=)\d{1,4}")
_CODE = re.compile(r"[A-Z_]{1,32}")
_MOST_CODES = 100
_RATES = ("average_precision", "brier", "calibration_error", "prevalence")
_INTERVAL = {"value", "low", "high"}
_KINDS = {"pretrain", "finetune", "evaluate"}
_SPLITS = {"train", "validation", "test"}
NOTHING_TOLD: dict[str, Any] = {
    "pictures": {}, "patients": 0, "findings": {}, "exclusions": {}, "image_size": 0, "kinds": [],
}  # fmt: skip


def check_evaluation(found: Mapping[str, Any], findings: Sequence[str]) -> None:
    """ValueError unless an evaluation holds what `metrics.evaluate_scores` makes; the text names no value, for it may hold anything."""
    _keys(found, {"examples", "patients", "mean_auroc", "findings"}, "an evaluation")
    _count(found["examples"])
    _count(found["patients"])
    _interval(found["mean_auroc"])
    _keys(found["findings"], set(findings), "an evaluation's findings")
    for cell in found["findings"].values():
        measured = _RATES if isinstance(cell, Mapping) and len(cell) > 3 else ()
        _keys(cell, {"auroc", "positives", "negatives", *measured}, "a finding")
        _interval(cell["auroc"])
        _count(cell["positives"])
        _count(cell["negatives"])
        for name in measured:
            _rate(cell[name])


def check_description(found: Mapping[str, Any], findings: Sequence[str]) -> None:
    """ValueError unless a description holds no more than what a hospital tells of its cache; it may hold less.

    Exclusions have names in capital letters; a hospital looks itself that they are of its own table.
    """
    _within(found, set(NOTHING_TOLD), "a description")
    whole = NOTHING_TOLD | dict(found)
    _within(whole["pictures"], _SPLITS, "a description's splits")
    _within(whole["findings"], set(findings), "a description's findings")
    _codes(whole["exclusions"])
    if not isinstance(whole["kinds"], list) or not all(
        isinstance(kind, str) and kind in _KINDS for kind in whole["kinds"]
    ):
        raise ValueError("a description's kinds holds other things than it may")
    for cell in whole["findings"].values():
        _keys(cell, {"positive", "negative", "unknown"}, "a finding")
    counts = (cell.values() for cell in (whole["pictures"], whole["exclusions"], *whole["findings"].values()))
    for count in (whole["patients"], whole["image_size"], *(one for some in counts for one in some)):
        _count(count)


def _keys(found: object, wanted: set[str], what: str) -> None:
    if not isinstance(found, Mapping) or set(found) != wanted:
        raise ValueError(f"{what} holds other things than it may")


def _within(found: object, known: set[str], what: str) -> None:
    if not isinstance(found, Mapping) or not set(found) <= known:
        raise ValueError(f"{what} holds other things than it may")


def _codes(found: object) -> None:
    if not isinstance(found, Mapping) or len(found) > _MOST_CODES or not all(map(_CODE.fullmatch, found)):
        raise ValueError("a description's exclusions holds other things than it may")


def _count(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, str) and _BUCKET.fullmatch(value)):
        raise ValueError("a count is neither a number nor a bucket")


def _rate(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value <= 1:
        raise ValueError("a rate is no number from 0 to 1")


def _interval(value: Any) -> None:
    if value is None:
        return
    _keys(value, _INTERVAL, "an interval")
    for each in value.values():
        _rate(each)
