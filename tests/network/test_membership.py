"""Flower's own SuperLink and SuperNodes, over TLS on loopback, with what provisioning, joining and enrolling have made."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.archive.settings import DicomArchive
from client.membership import Membership, join
from client.site import Policy, Site
from server.authority import Authority
from server.consortium import Consortium
from server.enrolment import enrol, kit_file, provision

PROGRAMS = Path(sys.executable).parent
WAIT = 120.0  # seconds for a program to start or a node to be seen; reached only where something is wrong

Start = Callable[..., "subprocess.Popen[bytes]"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one of Flower's programs in a session of its own, with a log beside the test's files; ends all at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(program: str, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("ab") as log:
            command = [str(PROGRAMS / program), *map(str, arguments)]
            started.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment(tmp_path / f"home-{name}"), start_new_session=True
                )
            )
        return started[-1]

    yield run
    for process in started:
        end(process, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a program and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, how)
    process.wait(WAIT)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    made = Consortium(
        schema=1, name="northlight", address="localhost", more_addresses=("127.0.0.1",), port=free_port(),
        hospitals=("riverside", "lindenhof"), home=tmp_path / "consortium",
    )  # fmt: skip
    provision(made)
    return made


def member(consortium: Consortium, hospital: str, folder: Path) -> Membership:
    site = Site(
        schema=1,
        site=hospital,
        archive=DicomArchive(path=folder),
        private=folder / hospital,
        policy=Policy(plans="any"),
    )
    return join(site, kit_file(consortium, hospital))


class Link:
    """A running SuperLink and how the operator speaks to it."""

    def __init__(self, consortium: Consortium, home: Path) -> None:
        self._environment = environment(home)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "localhost:{consortium.port}"\nroot-certificates = "{consortium.home / "authority.pem"}"\n'
        )

    def register(self, key: Path, name: str) -> None:
        assert self._ask("register", str(key), "here", "--name", name)["success"]

    def online(self) -> int:
        """How many nodes are online."""
        return [node["status"] for node in self._ask("list", "here")["nodes"]].count("online")

    def _ask(self, *arguments: str) -> dict[str, Any]:
        command = [str(PROGRAMS / "flwr"), "supernode", *arguments, "--format", "json"]
        asked = subprocess.run(command, env=self._environment, capture_output=True, timeout=WAIT, check=True)
        answer: dict[str, Any] = json.loads(asked.stdout)
        return answer


def wait_for_words(log: Path, words: str) -> None:
    """Wait until a program has said something."""
    deadline = time.monotonic() + WAIT
    while words not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"{log.stem} has not said {words!r}: {log.read_text(encoding='utf-8')}"
        time.sleep(0.05)


@pytest.fixture
def link(consortium: Consortium, start: Start, tmp_path: Path) -> Link:
    authority = Authority(consortium.home)
    process = start(
        "flower-superlink", "superlink", "--host", "127.0.0.1", "--port", consortium.port,
        "--ssl-certfile", authority.server_file, "--ssl-keyfile", authority.server_key_file,
        "--ssl-ca-certfile", authority.certificate_file, "--enable-supernode-auth",
        "--database", tmp_path / "superlink.db", "--disable-runtime-dependency-installation",
    )  # fmt: skip
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", consortium.port)) == 0:
                return Link(consortium, tmp_path / "operator")
        time.sleep(0.1)
    pytest.fail(f"the SuperLink did not start: {(tmp_path / 'superlink.log').read_text()[-2000:]}")


def node(start: Start, consortium: Consortium, name: str, *arguments: object) -> subprocess.Popen[bytes]:
    return start(
        "flower-supernode", name, "--superlink", f"localhost:{consortium.port}", "--port", free_port(), *arguments
    )


def test_enrolled_hospitals_get_in_and_nobody_else(
    consortium: Consortium, link: Link, start: Start, tmp_path: Path
) -> None:
    riverside = member(consortium, "riverside", tmp_path)
    enrol(consortium, "riverside", riverside.public_key)
    link.register(consortium.home / "enrolled" / "riverside.pub", "riverside")
    stranger = member(consortium, "lindenhof", tmp_path)  # has joined and was not enrolled
    impostor = replace(consortium, home=tmp_path / "impostor")
    provision(impostor)

    turned_away = [
        node(start, consortium, "stranger", "--root-certificates", stranger.authority, "--auth-supernode-private-key", stranger.key),
        node(start, consortium, "misled", "--root-certificates", impostor.home / "authority.pem", "--auth-supernode-private-key", riverside.key),
        node(start, consortium, "keyless", "--root-certificates", riverside.authority),
        node(start, consortium, "plain", "--insecure"),
    ]  # fmt: skip
    wait_for_words(tmp_path / "stranger.log", "Failed to activate SuperNode")
    wait_for_words(tmp_path / "misled.log", "CERTIFICATE_VERIFY_FAILED")
    wait_for_words(tmp_path / "keyless.log", "SuperNode authentication is enabled")
    wait_for_words(tmp_path / "plain.log", "Connection attempt failed")
    assert link.online() == 0
    for process in turned_away:
        end(process, signal.SIGKILL)

    credentials = ("--root-certificates", riverside.authority, "--auth-supernode-private-key", riverside.key)
    first = node(start, consortium, "riverside", *credentials)
    wait_for_words(tmp_path / "riverside.log", "SuperNode ID: ")
    assert link.online() == 1
    end(first, signal.SIGTERM)
    assert link.online() == 0
    node(start, consortium, "again", *credentials)
    wait_for_words(tmp_path / "again.log", "SuperNode ID: ")
    assert link.online() == 1, "a node that was stopped cleanly comes back with its key"
