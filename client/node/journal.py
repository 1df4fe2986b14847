"""The daemon's status as it changes: each change to the status file, changes of state and problems to the log."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.node.status import State, Status, write_status
from client.node.tally import read_tally

log = logging.getLogger("cxrbase.daemon")


class Journal:
    """Holds the status; a full disk costs the file's update and nothing else."""

    def __init__(self, private: Path, consortium: str) -> None:
        self._private = private
        self._status = Status(State.CONNECTING, time.time(), consortium, os.getpid())
        self._written: Status | None = None
        self.count()

    @property
    def state(self) -> State:
        """What the daemon is doing."""
        return self._status.state

    def enter(self, state: State, next_try: float | None = None) -> None:
        """Note what the daemon does now. next_try: seconds since 1970, None where nothing is to be tried."""
        if state is not self._status.state:
            log.info("%s", state.value)
            self._change(state=state, since=time.time(), next_try=next_try)
        else:
            self._change(next_try=next_try)

    def problem(self, text: str, remedy: str) -> None:
        """Note a problem and what to do about it."""
        if text != self._status.problem:
            log.warning("%s; %s", text, remedy)
        self._change(problem=text, remedy=remedy, problem_time=time.time())

    def count(self) -> None:
        """Take over what was answered so far."""
        tally = read_tally(self._private)
        self._change(tasks=tally.tasks, round=tally.round, codes=tally.codes)

    def _change(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)
        if self._status == self._written:
            return
        self._written = self._status
        try:
            write_status(self._private, self._status)
        except OSError as error:
            log.warning("the status cannot be written: %s", error.strerror)
