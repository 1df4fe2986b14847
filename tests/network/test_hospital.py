"""A hospital's daemon and a real SuperLink: it connects, is seen, goes and comes back; two daemons with one key do not both get in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.membership import join
from client.node.status import State, read_status
from client.site import read_site
from server.consortium import Consortium, read_consortium
from server.control import control, flower_key
from server.enrolment import enrol, kit_file, provision, revoke

PROGRAMS = Path(sys.executable).parent
WAIT = 120.0  # seconds; reached only where something is wrong

Start = Callable[..., "subprocess.Popen[bytes]"]


@contextmanager
def programs(folder: Path) -> Iterator[Start]:
    """Starts programs with a log each in a folder; kills what is left at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *command: object) -> subprocess.Popen[bytes]:
        (folder / "home").mkdir(exist_ok=True)
        path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}
        with (folder / f"{name}.log").open("ab") as log:
            started.append(
                subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=log, stderr=log, env=environment)
            )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program with a log beside the test's files."""
    with programs(tmp_path) as run:
        yield run


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A consortium whose SuperLink runs; its operator is these tests."""
    folder = tmp_path_factory.mktemp("consortium")
    file = folder / "consortium.yaml"
    settings = {
        "schema": 1,
        "name": "northlight",
        "address": "localhost",
        "more_addresses": ["127.0.0.1"],
        "port": free_port(),
        "hospitals": ["riverside", "lindenhof"],
    }
    file.write_text(yaml.safe_dump(settings))
    made = read_consortium(file)
    provision(made)
    with programs(folder) as run:
        run("superlink", "server.superlink", file, os.getpid())
        wait_for(lambda: answers(made.port), "the SuperLink did not start")
        yield made


@pytest.fixture(scope="module")
def site_file(consortium: Consortium, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital that has joined, is enrolled and known to the SuperLink."""
    return joined(consortium, "riverside", tmp_path_factory.mktemp("sites"))


def joined(consortium: Consortium, name: str, folder: Path) -> Path:
    file = folder / name / "SITE.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(settings(name, free_port())))
    key = enrol(consortium, name, join(read_site(file), kit_file(consortium, name)).public_key)
    with control(consortium) as link:
        link.let_in(name, flower_key(key))
    return file


def settings(name: str, health: int) -> dict[str, object]:
    archive = {"kind": "dicom", "path": "dicom"}
    return {"schema": 1, "site": name, "archive": archive, "daemon": {"health": f"127.0.0.1:{health}"}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(look: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WAIT
    while not look():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def wait_for_state(file: Path, state: State, text: str = "") -> None:
    def look() -> bool:
        status = read_status(file.parent / "private")
        return status is not None and status.state is state and text in status.problem

    wait_for(look, f"the hospital is not {state.value}: {read_status(file.parent / 'private')}")


def serving(file: Path) -> bool:
    address = yaml.safe_load(file.read_text())["daemon"]["health"]
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=WAIT
        )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_hospital_connects_and_comes_back_after_a_stop(site_file: Path, start: Start) -> None:
    for _ in range(2):
        daemon = start("riverside", "client.cli", "start", site_file)
        wait_for_state(site_file, State.CONNECTED)
        wait_for(lambda: serving(site_file), "the health service does not say so")
        asked = subprocess.run(
            [sys.executable, "-m", "client.cli", "status", str(site_file), "--json"],
            capture_output=True,
            timeout=WAIT,
            check=False,
        )
        assert asked.returncode == 0
        assert json.loads(asked.stdout)["state"] == "connected"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(WAIT) == 0
        wait_for_state(site_file, State.STOPPED)


def test_a_revoked_hospital_is_told_so(consortium: Consortium, start: Start, tmp_path: Path) -> None:
    file = joined(consortium, "lindenhof", tmp_path)
    revoke(consortium, "lindenhof")
    start("lindenhof", "client.cli", "start", file)
    wait_for_state(file, State.REFUSED, "northlight does not know this hospital's key")


@pytest.mark.slow
def test_two_daemons_with_one_key_take_turns(site_file: Path, start: Start, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "SITE.yaml"
    shutil.copytree(site_file.parent, copy.parent)
    copy.write_text(yaml.safe_dump(settings("riverside", free_port())))
    first = start("riverside", "client.cli", "start", site_file)
    wait_for_state(site_file, State.CONNECTED)
    start("copy", "client.cli", "start", copy)
    wait_for_state(copy, State.REFUSED, "online already")
    first.send_signal(signal.SIGTERM)
    assert first.wait(WAIT) == 0
    wait_for_state(copy, State.CONNECTED)
