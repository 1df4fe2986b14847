"""What the daemon says about itself: `private/status.json`, there whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from cxrbase_model.files import locked, write_private

STATUS_FILE = "status.json"
DAEMON_LOCK = "daemon.lock"

_SCHEMA = 1


class State(StrEnum):
    """What the daemon is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    PAUSED_HOURS = "paused-hours"
    PAUSED_DISK = "paused-disk"
    REFUSED = "refused"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Status:
    """The daemon's state since when (seconds since 1970), its last problem and what to do about it, and what was answered.

    problem_time: when the problem was found, None where there was none. next_try: when a connection is tried again, None while there
    is one or it is paused. round: the last round that was answered, None before the first.
    """

    state: State
    since: float
    consortium: str = ""
    pid: int = 0
    problem: str = ""
    remedy: str = ""
    problem_time: float | None = None
    next_try: float | None = None
    tasks: int = 0
    round: int | None = None
    codes: dict[str, int] = field(default_factory=dict)


def write_status(private: Path, status: Status) -> None:
    """Replace the file; OSError where the disk is full."""
    write_private(private / STATUS_FILE, json.dumps({"schema": _SCHEMA, **asdict(status)}, indent=1).encode())


def read_status(private: Path) -> Status | None:
    """The daemon's last word, None where there is none or it is of another release."""
    try:
        content = json.loads((private / STATUS_FILE).read_text(encoding="utf-8"))
        if content.pop("schema") != _SCHEMA:
            return None
        return Status(**content | {"state": State(content["state"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_running(private: Path) -> bool:
    """Whether a daemon runs on this private folder."""
    if not (private / DAEMON_LOCK).exists():
        return False
    with locked(private / DAEMON_LOCK) as free:
        return not free
