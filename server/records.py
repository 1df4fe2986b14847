"""What is written down of a round: a line for each hospital, sums and means over them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median
from typing import Any

from cxrbase_model.messages import MEANING, Code, Reply
from server.store import SCHEMA

Record = dict[str, Any]

_NORM_ROUNDS = 5  # norms fall with the learning rate, so that older rounds say little


def entry(site: str, status: str, code: Code | None, reply: Reply | None = None, **more: Any) -> Record:
    """One hospital's line in a round's record: admitted, refused (by the hospital), rejected (by the server) or silent."""
    line: Record = {"site": site, "status": status, "code": code.value if code else None}
    line |= {
        "examples": 0,
        "steps": 0,
        "loss": None,
        "seconds": 0.0,
        "metrics": {},
        "bytes_sent": 0,
        "bytes_received": 0,
    }
    if reply is not None:
        line |= {"examples": reply.examples, "steps": reply.steps, "loss": reply.loss, "seconds": reply.seconds}
        line |= {"metrics": reply.metrics, "bytes_received": len(reply.update)}
    return line | more


def record(
    number: int, stage: str, kind: str, stage_round: int, stage_rounds: int, attempt: int, started: float,
    entries: list[Record],
) -> Record:  # fmt: skip
    """The record of a round that began at `started` (time.monotonic)."""
    admitted = [line for line in entries if line["status"] == "admitted"]
    return {
        "schema": SCHEMA,
        "round": number,
        "stage": stage,
        "kind": kind,
        "stage_round": stage_round,
        "stage_rounds": stage_rounds,
        "attempt": attempt,
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "bytes_sent": sum(line["bytes_sent"] for line in entries),
        "bytes_received": sum(line["bytes_received"] for line in entries),
        "loss": _weighted([(line["loss"], line["examples"]) for line in admitted]),
        "metrics": _mean_metrics(admitted),
        "rejected": [{"site": e["site"], "code": e["code"]} for e in entries if e["status"] != "admitted"],
        "hospitals": sorted(entries, key=lambda line: str(line["site"])),
    }


def described(done: Record) -> list[Record]:
    """The lines of the hospitals that had described themselves by a round, and not before."""
    lines = done["hospitals"] if done["kind"] == "describe" else done.get("joined", [])
    return [line for line in lines if line["status"] == "admitted"]


def joined(records: Iterable[Record], entries: Iterable[Record]) -> list[Record]:
    """Those of the roster's lines whose hospital no record knows of yet."""
    known = {line["site"] for done in records for line in described(done)}
    return [line for line in entries if line["status"] == "admitted" and line["site"] not in known]


def usual_norm(records: Iterable[Record], stage: str) -> float | None:
    """The median norm of the updates that a stage's last rounds admitted; None before its first, and where it is zero: that measures nothing."""
    rounds = [found for found in records if found["stage"] == stage][-_NORM_ROUNDS:]
    sizes = [line["update_norm"] for found in rounds for line in found["hospitals"] if line["status"] == "admitted"]
    known = [size for size in sizes if size is not None]
    return (median(known) or None) if known else None


def told(entries: Iterable[Record]) -> str:
    """What the hospitals that did not take part answered, for an operator."""
    by_code: dict[Code, list[str]] = {}
    for line in entries:
        if line["status"] != "admitted":
            by_code.setdefault(Code(line["code"]), []).append(line["site"])
    parts = [f"{', '.join(sorted(sites))}: {code.value} ({MEANING[code]})" for code, sites in sorted(by_code.items())]
    return f" ({'; '.join(parts)})" if parts else ""


def _weighted(pairs: list[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _mean_metrics(entries: list[Record]) -> dict[str, float]:
    """The unweighted mean over hospitals of each metric, so that a large hospital does not hide a small one."""
    names = sorted({name for line in entries for name in line["metrics"]})
    values = {name: [line["metrics"][name] for line in entries if name in line["metrics"]] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
