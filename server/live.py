"""What goes on right now, as a file in the run directory, and what the operator asks of a run while it goes on.

status.json            state, round in progress, who is there, who has not answered yet; written anew every few seconds
requests/pause, stop   empty files: hold before the next round, or end after this one
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.store import write_atomic

if TYPE_CHECKING:  # with Flower, which the commands about a run need not wait for
    from server.exchange import Node

STATUS_SCHEMA = 1
STATES = ("starting", "gathering", "running", "paused", "done", "stopped", "failed")

_EVERY = 2.0  # seconds between two versions of the file where nothing but the time has changed
_REQUESTS = ("pause", "stop")


class Live:
    """The status of one run, kept by the process that runs its rounds."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "status.json"
        self._requests = Requests(folder)
        earlier = read_status(folder) or {}
        self._status: dict[str, Any] = {
            "schema": STATUS_SCHEMA, "state": "starting", "process": os.getpid(), "session": secrets.token_hex(8), "detail": "",
            "round": None, "stage": None, "attempt": None, "since": time.time(), "waiting_for": [], "nodes": earlier.get("nodes", {}),
        }  # fmt: skip
        self._names: dict[int, str] = {}
        self._write()

    def tell(self, state: str, detail: str = "") -> None:
        """Say what the run does now; `detail` is a sentence for the operator."""
        if (state, detail) != (self._status["state"], self._status["detail"]):
            self._change({"state": state, "detail": detail})

    def begin(self, number: int, stage: str, attempt: int) -> None:
        """Say that a round begins."""
        self._change({"round": number, "stage": stage, "attempt": attempt, "state": "running", "detail": ""})

    def know(self, names: dict[int, str]) -> None:
        """Remember which hospital is behind which node."""
        self._names = dict(names)
        for number in names:  # it was listed so before it had said its name
            self._status["nodes"].pop(f"node {number}", None)

    def look(self, nodes: Collection[Node], waiting: Iterable[int]) -> None:
        """Note who is there now and who has not answered yet."""
        there = {self._name(node): node for node in nodes}
        known = self._status["nodes"]
        before = ({name for name in known if known[name]["online"]}, self._status["waiting_for"])
        for name in known:
            known[name]["online"] = name in there
        for name, node in there.items():
            known[name] = {"online": True, "last_seen": node.heard or time.time()}
        names = self._names | {node.number: node.name for node in nodes if node.name}
        self._status["waiting_for"] = [names.get(number, f"node {number}") for number in waiting]
        if before != (set(there), self._status["waiting_for"]) or time.monotonic() - self._written >= _EVERY:
            self._write()

    def _name(self, node: Node) -> str:
        return node.name or self._names.get(node.number, f"node {node.number}")

    def paused(self) -> bool:
        """Whether the operator has asked to hold."""
        return self._requests.asked("pause")

    def stopping(self) -> bool:
        """Whether the operator has asked to end after this round."""
        return self._requests.asked("stop")

    def _change(self, changes: dict[str, Any]) -> None:
        self._status |= {**changes, "waiting_for": [], "since": time.time()}
        self._write()

    def _write(self) -> None:
        self._status["updated"], self._written = time.time(), time.monotonic()
        with contextlib.suppress(OSError):  # a full disk costs the status, never the round that is under way
            write_atomic(self._file, json.dumps(self._status).encode() + b"\n")


class Requests:
    """What the operator asks of a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "requests"

    def ask(self, what: str) -> None:
        """Ask for `pause` or `stop`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(what).touch()

    def withdraw(self, what: str) -> None:
        """Ask for it no more."""
        self._path(what).unlink(missing_ok=True)

    def asked(self, what: str) -> bool:
        """Whether it is asked for."""
        return self._path(what).exists()

    def _path(self, what: str) -> Path:
        assert what in _REQUESTS
        return self._folder / what


def read_status(folder: Path) -> dict[str, Any] | None:
    """The content of a run's status.json; None where there is none of this schema."""
    try:
        content = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == STATUS_SCHEMA else None
