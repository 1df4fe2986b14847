"""What the processes of a network take, read from outside: peaks of memory, and processor time. Linux alone has this (proc(5))."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

_LOOK = 0.05  # seconds between looks
_TICKS = os.sysconf("SC_CLK_TCK")
_SESSION = 3  # of what follows the name in /proc/N/stat
_OWN, _ENDED = slice(11, 13), slice(13, 15)  # user and system time of the process, and of those that it has waited for


class Watcher:
    """Watches the processes that note themselves in a folder (`bench.wire.notes`), and all that belong to the given sessions.

    A process that has ended is counted as it was last seen, at most 50 ms before.
    """

    def __init__(self, notes: Path, sessions: Mapping[int, str]) -> None:
        self._notes, self._sessions = notes, sessions
        self._peaks: dict[Path, int] = {}
        self._own: dict[
            Path, tuple[bool, float]
        ] = {}  # of the apps: whether in one of the sessions, and processor seconds
        self._marks: dict[int, Mapping[str, float]] = {}  # processor seconds since the start, by the commits so far

    def watch(self, done: threading.Event) -> None:
        """Look again and again."""
        while not done.wait(_LOOK):
            self._look()

    def peak(self, kind: str) -> float:
        """The most bytes that a process of a kind, server or client, held above what it held when its app was loaded."""
        return float(
            max(peak - int(path.read_text() or 0) for path, peak in self._peaks.items() if path.suffix == f".{kind}")
        )

    def processor_seconds(self) -> dict[str, float]:
        """Processor seconds a round of all processes of a kind, over the rounds after the first of training; empty with fewer."""
        marks = sorted(item for item in self._marks.items() if item[0] > 1)  # the first is no training
        if len(marks) < 2:
            return {}
        (first, before), (last, after) = marks[0], marks[-1]
        spent = {name: (after[name] - before[name]) / (last - first) for name in after}
        return spent | {"all": sum(spent.values())}

    def _look(self) -> None:
        for path in [*self._notes.glob("*.server"), *self._notes.glob("*.client")]:
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{path.stem}/status").read_text(encoding="utf-8").splitlines()
                self._peaks[path] = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
                stat = _stat(path.stem)
                self._own[path] = (int(stat[_SESSION]) in self._sessions, _seconds(stat, _OWN))
        with contextlib.suppress(OSError):
            commits = (self._notes / "rounds.jsonl").read_bytes().count(b"\n")
            if commits not in self._marks:
                self._marks[commits] = self._spent()

    def _spent(self) -> Mapping[str, float]:
        """Processor seconds so far: of the apps' processes, and of all else in the sessions."""
        spent: dict[str, float] = defaultdict(float)
        for stat in _all_stats():
            if (kind := self._sessions.get(int(stat[_SESSION]))) is not None:
                spent[kind] += _seconds(stat, _OWN) + _seconds(stat, _ENDED)
        for suffix, app, host in ((".server", "serverapp", "superlink"), (".client", "clientapps", "supernodes")):
            for path, (inside, seconds) in self._own.items():
                if path.suffix == suffix:
                    spent[app] += seconds
                    spent[host] -= seconds if inside else 0
        return spent


def _all_stats() -> Iterator[list[str]]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                yield _stat(path.name)


def _stat(process: str) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()


def _seconds(stat: list[str], which: slice) -> float:
    return sum(map(int, stat[which])) / _TICKS
