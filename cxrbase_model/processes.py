"""Programs that run beside ours: their output in rotating logs, a clean end, and pauses before they are started again."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path

from cxrbase_model.files import open_private


class Program:
    """A child process in a group of its own, whose lines go to a rotating log that only the owner may read.

    `heard` is called with each line too, from another thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        log_bytes: int = 10 << 20,
        log_files: int = 5,
        heard: Callable[[str], None] = lambda line: None,
    ) -> None:
        handler = _rotating(log, log_bytes, log_files)
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.last_lines: list[str] = []
        self._heard = heard
        self._reader = threading.Thread(target=self._copy, args=(handler,), name=log.stem, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def end(self, grace: float) -> None:
        """Ask it to end, and make it after `grace` seconds; what it has started in its own group ends with it."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(1.0)

    def _copy(self, handler: logging.Handler) -> None:
        assert self._process.stdout is not None
        with contextlib.closing(handler), self._process.stdout as lines:
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip()
                self.last_lines = [*self.last_lines[-19:], text]
                handler.emit(logging.makeLogRecord({"msg": text}))
                self._heard(text)


class Backoff:
    """Pauses that double from `first` to `longest` seconds, with up to a quarter of chance, until things go well for `stable` seconds, or somebody says so."""

    def __init__(self, first: float = 1.0, longest: float = 300.0, stable: float = 60.0) -> None:
        self._first, self._longest, self._stable = first, longest, stable
        self._next, self._begun = first, time.monotonic()

    def begin(self) -> None:
        """Note that another try begins."""
        self._begun = time.monotonic()

    def succeed(self) -> None:
        """Note that this try has got something done: the next pause is the first one again."""
        self._next = self._first

    def pause(self) -> float:
        """The seconds to wait before the next try, now that this one has failed."""
        if time.monotonic() - self._begun >= self._stable:
            self._next = self._first
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause * random.uniform(1.0, 1.25)


def end_with_parent(parent: int | None = None) -> None:
    """End this process soon after the one that has started it has ended, even by kill -9; `parent` is its number where that is known."""
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Log(logging.handlers.RotatingFileHandler):
    """A rotating log of which each file is its owner's alone; a full disk costs lines of it, never the program."""

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(open_private(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND), encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's own
        """Go on without the line."""


def _rotating(path: Path, size: int, files: int) -> logging.Handler:
    handler = _Log(path, maxBytes=size, backupCount=files, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    return handler
