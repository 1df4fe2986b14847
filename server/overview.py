"""How a run stands, from what is on disk: its records, its status.json, and the enrolled hospitals."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table

from cxrbase_model.files import locked
from cxrbase_model.plan import Plan, Round, timeline
from server.live import read_status
from server.store import RunStore

OVERVIEW_SCHEMA = 1
UNDER_WAY = ("starting", "gathering", "running", "paused")

_RECENT = 5  # rounds of a stage whose mean time says how long the next ones take


def overview(folder: Path, enrolled: Iterable[str] = ()) -> dict[str, Any]:
    """State, progress, time left in seconds and a line for each hospital, as `cxrbase-server status --json` prints it.

    `state` is one of those of `live.STATES`, or interrupted: begun, and nobody runs it now.
    """
    plan = RunStore.check(folder)
    store = RunStore(folder, plan)
    records, status = store.records(), read_status(folder) or {}
    done = records[-1]["round"] if records else 0
    rounds = timeline(plan)
    current = next((item for item in rounds if item.number > done), rounds[-1])
    state = _state(folder, status, finished=done >= len(rounds))
    return {
        "schema": OVERVIEW_SCHEMA,
        "name": plan.name,
        "plan": plan.digest,
        "state": state,
        "detail": status.get("detail", ""),
        "rounds_done": done,
        "rounds": len(rounds),
        "stage": current.stage.name,
        "stage_round": current.stage_round,
        "stage_rounds": current.stage_rounds,
        "attempt": status.get("attempt") if state == "running" else None,
        "waiting_for": status.get("waiting_for", []) if state in UNDER_WAY else [],
        "seconds_left": _left(plan, rounds, records, done),
        "hospitals": _hospitals(records, status, enrolled, running=state in UNDER_WAY),
    }


def _state(folder: Path, status: dict[str, Any], *, finished: bool) -> str:
    state = str(status.get("state", "starting"))
    if finished:
        return "done"
    if state in UNDER_WAY:
        with locked(folder / "run.lock") as free:
            return "interrupted" if free else state
    return state


def _left(plan: Plan, rounds: Sequence[Round], records: list[dict[str, Any]], done: int) -> float | None:
    """Seconds until the end, if the rounds to come take as long as the last ones of their stage, or of any."""
    seconds = {stage.name: [r["seconds"] for r in records if r["stage"] == stage.name] for stage in plan.stages}
    known = [fmean(values[-_RECENT:]) for values in seconds.values() if values]
    if not known:
        return None
    guesses = {name: fmean(values[-_RECENT:]) if values else fmean(known) for name, values in seconds.items()}
    return round(sum(guesses[item.stage.name] for item in rounds if item.number > done), 1)


def _hospitals(
    records: list[dict[str, Any]], status: dict[str, Any], enrolled: Iterable[str], *, running: bool
) -> list[dict[str, Any]]:
    lines = {name: _line(name) for name in enrolled}
    for name, node in status.get("nodes", {}).items():
        line = lines.setdefault(name, _line(name))
        line |= {"online": bool(node["online"]) and running, "last_seen": node["last_seen"]}
    for record in records:
        for entry in record["hospitals"]:
            _count(lines.setdefault(entry["site"], _line(entry["site"])), entry, training=record["round"] > 0)
    return [lines[name] for name in sorted(lines)]


def _line(name: str) -> dict[str, Any]:
    counts = {"rounds": 0, "refusals": 0, "missed": 0, "examples": 0, "bytes_sent": 0, "bytes_received": 0}
    return {"name": name, "online": False, "last_seen": None, "last_code": None} | counts


def _count(line: dict[str, Any], entry: dict[str, Any], *, training: bool) -> None:
    admitted, silent = entry["status"] == "admitted", entry["status"] == "silent"
    line["rounds"] += training and admitted
    line["missed"] += silent
    line["refusals"] += not admitted and not silent
    line["last_code"] = entry["code"]
    line["examples"] = max(line["examples"], entry["examples"]) if training else line["examples"]
    line["bytes_sent"] += entry["bytes_sent"]
    line["bytes_received"] += entry["bytes_received"]


def table(content: dict[str, Any]) -> Table:
    """The hospitals of an overview for a terminal."""
    shown = Table(box=None, padding=(0, 1), pad_edge=False)
    for heading, justify in (("hospital", "left"), ("", "left"), ("last seen", "left"), ("rounds", "right"), ("missed", "right"), ("refused", "right"), ("examples", "right"), ("sent", "right"), ("received", "right"), ("last answer", "left")):  # fmt: skip
        shown.add_column(heading, justify=justify)  # type: ignore[arg-type]  # the two words are rich's own
    for line in content["hospitals"]:
        online = "[green]online[/green]" if line["online"] else "[yellow]offline[/yellow]"
        shown.add_row(
            escape(line["name"]), online, _ago(line["last_seen"]), str(line["rounds"]), str(line["missed"]),
            str(line["refusals"]), f"{line['examples']:,}", _bytes(line["bytes_sent"]), _bytes(line["bytes_received"]),
            line["last_code"] or "",
        )  # fmt: skip
    return shown


def headline(content: dict[str, Any]) -> str:
    """The run in one or two lines for a terminal."""
    left = (
        ""
        if content["seconds_left"] is None or content["state"] == "done"
        else f", about {duration(content['seconds_left'])} left"
    )
    lines = [
        f"[bold]{escape(content['name'])}[/bold]: {content['state']}, {content['rounds_done']} of {content['rounds']} rounds done{left}"
    ]
    if content["state"] != "done":
        attempt = f", attempt {content['attempt']}" if content["attempt"] else ""
        lines.append(
            f"stage {escape(content['stage'])}, its round {content['stage_round']} of {content['stage_rounds']}{attempt}"
        )
    if content["waiting_for"]:
        lines.append(f"waits for {escape(', '.join(content['waiting_for']))}")
    if content["detail"]:
        lines.append(escape(content["detail"]))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A span of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _ago(moment: float | None) -> str:
    return "never" if moment is None else f"{duration(max(0.0, time.time() - moment))} ago"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
