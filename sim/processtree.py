"""Which processes a program has started, what they are and how much memory they hold, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process: its number, its parent's, its command line in one string, and the bytes it holds alone (resident, not shared)."""

    pid: int
    parent: int
    command: str
    memory: int


def descendants(pid: int) -> list[Process]:
    """Everything that a process has started and what that has started, as long as it runs; a dead one counts no more."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                state, above = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents.setdefault(int(above), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = parents.get(parent, [])
        waiting += children
        for child in children:
            with contextlib.suppress(OSError, IndexError):
                found.append(_process(child, parent))
    return found


def _process(pid: int, parent: int) -> Process:
    command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    resident, shared = (int(field) for field in (_PROC / str(pid) / "statm").read_text().split()[1:3])
    return Process(pid, parent, command, 4096 * (resident - shared))
