"""A whole consortium on one machine, from the programs that operators and hospitals run: SuperLink, SuperNodes, TLS, keys.

Each hospital reaches the server over a line of its own (`proxy.Line`), so that networks can fail one at a time. For tests, studies of
reliability and a first look; what is measured here goes over loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from client.membership import join
from client.site import read_site
from cxrbase_model.plan import Plan, plan_to_text
from server.consortium import Consortium, read_consortium
from server.enrolment import enrol, kit_file, provision
from sim.processtree import Process, descendants
from sim.proxy import Line

_GRACE = 30.0  # seconds in which a program may end by itself

# What a process of the deployment is known by in its command line; a ClientApp is a fork of a process that has everything loaded.
SUPERLINK, SERVERAPP, SUPERNODE, EXECUTOR, CLIENTAPP = (
    "server.superlink", "flwr-serverapp", "client.node.supernode", "client.node.executor", "multiprocessing.forkserver",
)  # fmt: skip


class DeploymentFailed(RuntimeError):
    """What was waited for did not come; the message says what, and what the programs said last."""


class Daemon:
    """One of our commands as a process in a session of its own; everything it prints is in `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self.log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        program = str(Path(sys.executable).parent / self._command[0])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *self._command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout: float) -> int:
        """Its exit status; DeploymentFailed where it does not end in time."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeploymentFailed(
                f"{' '.join(self._command)} has not ended in {timeout:.0f} s\n{self.tail()}"
            ) from None

    def processes(self, kind: str) -> list[Process]:
        """The running processes of a kind that it has started."""
        found = {process.pid: process for process in descendants(self.pid)} if self.running() else {}
        same = [process for process in found.values() if kind in process.command]
        if kind != CLIENTAPP:
            return same
        return [process for process in same if process.parent in found and kind in found[process.parent].command]

    def stop(self) -> None:
        """End it as an administrator does; by force where that takes too long."""
        if self._process is None:
            return
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        """A program that starts the daemon, such as faketime, passes no signal on; what the daemon starts is in groups of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """kill -9 of it alone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def kill_all(self) -> None:
        """kill -9 of it and of everything it has started, at once: a power cut."""
        for process in descendants(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.kill()

    def tail(self, lines: int = 15) -> str:
        """The last lines that it has printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Hospital:
    """One hospital: its SITE.yaml, its line to the server and its daemon."""

    def __init__(self, name: str, site_file: Path, line: Line, log: Path) -> None:
        self.name, self.site_file, self.line = name, site_file, line
        self.daemon = Daemon(["cxrbase-client", "start", str(site_file)], log)

    @property
    def private(self) -> Path:
        """Its private folder."""
        return read_site(self.site_file).private

    def status(self) -> dict[str, Any]:
        """What its daemon says of itself; nothing where it has said nothing yet."""
        try:
            content: dict[str, Any] = json.loads((self.private / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content


class Deployment:
    """A consortium in a folder; as a context it ends everything that it has started.

    sites: the SITE.yaml of each hospital by its name, caches built to the plan.
    """

    def __init__(self, folder: Path, plan: Plan, sites: Mapping[str, Path]) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "consortium.yaml"
        (folder / "plan.yaml").write_text(plan_to_text(plan), encoding="utf-8")
        self._write_settings(list(sites))
        self.consortium: Consortium = read_consortium(self.file)
        provision(self.consortium)
        self.operator = Daemon(["cxrbase-server", "start", str(self.file)], folder / "operator.log")
        self.hospitals: dict[str, Hospital] = {}
        self._lines = contextlib.ExitStack()
        for name, site_file in sites.items():
            self.add(name, site_file)

    def _write_settings(self, names: list[str]) -> None:
        settings = {
            "schema": 1, "name": "northlight", "address": "localhost", "bind": "127.0.0.1", "port": free_port(),
            "hospitals": names, "plan": "plan.yaml",
        }  # fmt: skip
        self.file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def add(self, name: str, site_file: Path) -> Hospital:
        """Let a hospital join over a new line: kit, key, enrolment; it is not started."""
        if name not in self.consortium.hospitals:
            settings = yaml.safe_load(self.file.read_text(encoding="utf-8"))
            settings["hospitals"].append(name)
            self.file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            self.consortium = read_consortium(self.file)
            provision(self.consortium)
        line = self._lines.enter_context(Line(self.consortium.port))
        kit = yaml.safe_load(kit_file(self.consortium, name).read_text(encoding="utf-8"))
        own_kit = self.folder / f"{name}.kit.yaml"
        own_kit.write_text(yaml.safe_dump(kit | {"port": line.port}, sort_keys=False), encoding="utf-8")
        member = join(read_site(site_file), own_kit)
        enrol(self.consortium, name, member.public_key)
        self.hospitals[name] = Hospital(name, site_file, line, self.folder / f"{name}.log")
        return self.hospitals[name]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.consortium.run

    def start(self) -> None:
        """Start the operator's daemon and every hospital's."""
        self.operator.start()
        for hospital in self.hospitals.values():
            hospital.daemon.start()

    def records(self) -> list[dict[str, Any]]:
        """The records of all committed rounds; a line that is being written counts not yet."""
        file = self.run / "rounds.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def committed(self) -> int:
        """The number of the newest committed round, -1 before the hospitals have described themselves."""
        records = self.records()
        return int(records[-1]["round"]) if records else -1

    def status(self) -> dict[str, Any]:
        """The run's status.json; nothing where there is none yet."""
        try:
            content: dict[str, Any] = json.loads((self.run / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content

    def wait_for_round(self, number: int, timeout: float = 240.0) -> None:
        """Wait until a round is committed."""
        self.wait_until(lambda: self.committed() >= number, f"round {number} was not committed", timeout)

    def wait_until(
        self, condition: Callable[[], bool], failure: str, timeout: float = 120.0, pause: float = 0.02
    ) -> None:
        """Wait for something; DeploymentFailed with what everybody said last where it does not come in time."""
        limit = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > limit:
                raise DeploymentFailed(f"{failure} within {timeout:.0f} s\n{self.told()}")
            time.sleep(pause)

    def finish(self, timeout: float = 600.0) -> int:
        """Wait for the operator's daemon to end; its exit status."""
        return self.operator.wait(timeout)

    def told(self) -> str:
        """The last lines of every program."""
        parts = [f"--- operator\n{self.operator.tail()}" if self.operator.log.exists() else ""]
        for hospital in self.hospitals.values():
            parts += [f"--- {hospital.name}\n{hospital.daemon.tail()}"] if hospital.daemon.log.exists() else []
        return "\n".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        daemons = [self.operator, *(hospital.daemon for hospital in self.hospitals.values())]
        for daemon in daemons:
            daemon.stop()
        self._lines.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
