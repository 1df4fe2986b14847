"""The two processes that make a hospital a node of the federation: Flower's SuperNode, and the executor that starts its tasks."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import secrets
import socket
import time
from pathlib import Path

from client.membership import Membership
from client.node.supernode import Event, command, environment, event_of, last_words, node_config, number_of, python
from client.site import Site
from cxrbase_model.files import locked, private_folder, write_private
from cxrbase_model.processes import Program

RUN = "run"  # folder of what only lives as long as the daemon
LOGS = "logs"
TASK_LOCK = "task.lock"  # held by the runner while a task runs

_NUMBER = "number"  # the server's for this hospital, and where it was told

_GRACE = 20.0  # seconds from the request to end until a process is killed
_EXECUTOR_PAUSE = 5.0  # seconds between two starts of the executor


class Node:
    """Starts, ends and listens to both processes; a SuperNode that ends by itself leaves the executor and its task alone."""

    def __init__(self, site: Site, site_file: Path, member: Membership) -> None:
        self._site, self._site_file, self._member = site, site_file, member
        self._folder = private_folder(site.private / RUN)
        self._secret = self._folder / "secret"
        self._port = 0
        self._supernode: Program | None = None
        self._executor: Program | None = None
        self._executor_started = -_EXECUTOR_PAUSE
        self._lines: queue.Queue[str] = queue.Queue()
        self._exchanging = False
        self.connected, self.in_use = False, False

    @property
    def running(self) -> bool:
        """Whether there is a SuperNode, be it one that has just ended by itself."""
        return self._supernode is not None

    @property
    def ended(self) -> bool:
        """Whether the SuperNode has ended by itself."""
        return self._supernode is not None and self._supernode.status() is not None

    @property
    def busy(self) -> bool:
        """Whether a task is fetched, worked on or sent."""
        if self._exchanging:
            return True
        with locked(self._folder / TASK_LOCK) as free:
            return not free

    @property
    def last_words(self) -> str:
        """Why the SuperNode has ended, in its own words."""
        return last_words(self._supernode.last_lines if self._supernode else ())

    def start(self) -> None:
        """Start what is not there; OSError where a file cannot be written or a process not started."""
        if not _is_free(self._port):
            self._end_executor()  # it would ask at the old port
            self._port = self._site.daemon.runtime_port or _free_port()
        if self._executor is None:
            write_private(self._secret, secrets.token_bytes(32))
        config = self._folder / "node.toml"
        write_private(config, node_config(self._site_file))
        self.connected, self.in_use, self._exchanging = False, False, False
        self._supernode = self._program(
            "supernode", command(self._member, config, self._secret, self._port, self._earlier())
        )
        self._tend_executor()

    def listen(self, seconds: float) -> None:
        """Take in what the SuperNode has written, waiting for it up to so many seconds, and see to it that the executor runs."""
        with contextlib.suppress(queue.Empty):
            self._hear(self._lines.get(timeout=seconds))
            while True:
                self._hear(self._lines.get_nowait())
        if self.running:
            self._tend_executor()

    def bury(self) -> None:
        """Take leave of a SuperNode that has ended by itself."""
        if self._supernode is not None:
            self._supernode.end(0.0)
            self.listen(0.0)
        self._supernode = None
        self.connected, self._exchanging = False, False

    def stop(self) -> None:
        """End both processes, the SuperNode by signing off."""
        if self._supernode is not None:
            self._supernode.end(_GRACE)
        self._supernode = None
        self._end_executor()
        self.connected, self._exchanging = False, False

    def _earlier(self) -> int:
        """The server's number for this hospital, of the last SuperNode that ran from this folder on this machine; 0 if unknown.

        A copy of the folder, on another machine or elsewhere on this one, must not sign off the one that runs here.
        """
        try:
            number, place = (self._folder / _NUMBER).read_text(encoding="utf-8").split("\n")
            return int(number) if place == self._place else 0
        except (OSError, ValueError):
            return 0

    @property
    def _place(self) -> str:
        return json.dumps([platform.node(), str(self._folder.resolve())])  # in one line, whatever the folder is called

    def _hear(self, line: str) -> None:
        event, number = event_of(line), number_of(line)
        if number is not None:
            with contextlib.suppress(OSError):  # a full disk costs up to a minute after the next crash
                write_private(self._folder / _NUMBER, f"{number}\n{self._place}".encode())
        if event in (Event.CONNECTED, Event.LOST):
            self.connected = event is Event.CONNECTED
        elif event in (Event.BUSY, Event.IDLE):
            self._exchanging = event is Event.BUSY
        elif event is Event.IN_USE:
            self.in_use = True

    def _tend_executor(self) -> None:
        if self._executor is not None and self._executor.status() is None:
            return
        if time.monotonic() - self._executor_started < _EXECUTOR_PAUSE:
            return
        self._end_executor()
        self._executor_started = time.monotonic()
        self._executor = self._program("executor", [
            *python("client.node.executor"), "--private", str(self._site.private),
            "--address", f"127.0.0.1:{self._port}", "--secret", str(self._secret), "--parent", str(os.getpid()),
        ])  # fmt: skip

    def _end_executor(self) -> None:
        if self._executor is not None:
            self._executor.end(_GRACE)
        self._executor = None

    def _program(self, name: str, arguments: list[str]) -> Program:
        settings = self._site.daemon
        return Program(
            arguments, private_folder(self._site.private / LOGS) / f"{name}.log", environment(self._site.private),
            log_bytes=settings.log_size * 1_000_000, log_files=settings.log_files,
            heard=self._lines.put if name == "supernode" else lambda line: None,
        )  # fmt: skip


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
