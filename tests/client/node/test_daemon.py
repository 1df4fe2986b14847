"""`cxrbase-client start` as a process of its own: what it says about itself, and how it ends. No SuperLink is there yet."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.cli import main
from client.membership import membership
from client.node.node import Node
from client.node.status import State, read_status
from client.node.supernode import Event, environment, event_of, node_config
from client.site import Site
from cxrbase_model.files import locked, private_folder
from tests.client.node.conftest import free_port, wait_for
from tests.client.serving import Authority, hello, joined, serving

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Starts a daemon on the site, its `daemon` and `policy` changed by name; kills what is left at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(policy: dict[str, Any] | None = None, **settings: Any) -> subprocess.Popen[bytes]:
        file = site.private.parent / "SITE.yaml"
        content = yaml.safe_load(file.read_text())
        content["daemon"] = {"health": ""} | settings
        content["policy"] = {"plans": "any"} | (policy or {})
        file.write_text(yaml.safe_dump(content))
        with (site.private.parent / "out").open("ab") as out:
            command = [sys.executable, "-m", "client.cli", "start", str(file)]
            started.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def state(site: Site, wanted: State, text: str = "") -> bool:
    """Whether the daemon is in this state, and has met a problem that says this."""
    status = read_status(site.private)
    return status is not None and status.state is wanted and text in status.problem


def command(site: Site, *arguments: str) -> int:
    return main([arguments[0], str(site.private.parent / "SITE.yaml"), *arguments[1:]])


def test_a_server_that_is_away_is_waited_for(
    site: Site, authority: Authority, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(site.private, authority.pem, 9)
    port = free_port()
    daemon = start(health=f"127.0.0.1:{port}")
    wait_for(lambda: state(site, State.CONNECTING, "refuses the connection"))
    assert command(site, "status", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["site"], told["running"], told["state"], told["pid"]) == ("riverside", True, "connecting", daemon.pid)
    assert told["next_try"] > told["since"]
    assert "ask the operator whether the server runs" in told["remedy"]
    assert command(site, "status") == 1
    assert "riverside: connecting, since" in capsys.readouterr().out
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert command(site, "status") == 3
    assert "riverside: not running" in capsys.readouterr().out
    assert state(site, State.STOPPED)


def test_a_second_daemon_is_turned_away_and_a_dead_one_is_not_in_the_way(
    site: Site, authority: Authority, start: Start
) -> None:
    joined(site.private, authority.pem, 9)
    first = start()
    wait_for(lambda: state(site, State.CONNECTING, "refuses"))
    assert start().wait(60) == 1
    assert "a daemon runs on" in (site.private.parent / "out").read_text()
    first.kill()
    first.wait()
    (site.private / "status.json").unlink()
    start()
    wait_for(lambda: state(site, State.CONNECTING, "refuses"))


def test_a_key_that_is_not_enrolled_is_a_refusal(site: Site, authority: Authority, start: Start) -> None:
    with serving(authority.issue(), hello(hospital=None)) as port:
        joined(site.private, authority.pem, port)
        start()
        wait_for(lambda: state(site, State.REFUSED, "northlight does not know this hospital's key"))


def test_a_supernode_that_ends_is_quoted_and_started_again(site: Site, authority: Authority, start: Start) -> None:
    """The server here knows the hello and nothing of Flower."""
    with serving(authority.issue(), hello()) as port:
        joined(site.private, authority.pem, port)
        daemon = start()
        wait_for(lambda: state(site, State.CONNECTING, "the SuperNode has ended: Failed to initialize the connection"))
        logs = site.private / "logs"
        wait_for(lambda: (logs / "supernode.log").read_text().count("Starting Flower SuperNode") >= 2)
        assert {stat.S_IMODE(path.stat().st_mode) for path in logs.iterdir()} == {0o600}
        assert {path.name for path in logs.iterdir()} <= {"daemon.log", "supernode.log", "executor.log"}
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        daemon.kill()
        daemon.wait()
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_nothing_is_tried_out_of_hours_or_on_a_full_disk(site: Site, authority: Authority, start: Start) -> None:
    joined(site.private, authority.pem, 9)
    now = time.time()
    span = "-".join(time.strftime("%H:%M", time.localtime(now + hours * 3600)) for hours in (2, 3))
    daemon = start({"hours": [span]})
    wait_for(lambda: state(site, State.PAUSED_HOURS))
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(30) == 0
    start(least_free=1e6)
    wait_for(lambda: state(site, State.PAUSED_DISK, "nearly full"))


def test_a_hospital_that_has_not_joined_is_told_how(site: Site, start: Start) -> None:
    assert start().wait(60) == 2
    assert "run cxrbase-client join" in (site.private.parent / "out").read_text()


def test_a_health_address_that_is_taken_is_told(site: Site, authority: Authority, start: Start) -> None:
    joined(site.private, authority.pem, 9)
    port = free_port()
    start(health=f"127.0.0.1:{port}")
    wait_for(lambda: state(site, State.CONNECTING))
    second = site.private.parent / "second"
    joined(second / "private", authority.pem, 9)
    content = yaml.safe_load((site.private.parent / "SITE.yaml").read_text())
    (second / "SITE.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "client.cli", "start", str(second / "SITE.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"daemon.health: 127.0.0.1:{port} is in use" in done.stderr


def test_a_running_task_is_seen(site: Site, authority: Authority) -> None:
    joined(site.private, authority.pem, 9)
    node = Node(site, site.private.parent / "SITE.yaml", membership(site))
    seen = [node.busy]
    with locked(private_folder(site.private / "run") / "task.lock"):
        seen.append(node.busy)
    seen.append(node.busy)
    assert seen == [False, True, False]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("\x1b[92mINFO \x1b[0m:      SuperNode ID: 345", Event.CONNECTED),
        ("INFO :      Connection successful after 4.10 seconds and 3 tries.", Event.CONNECTED),
        ("WARNING : Connection attempt failed, retrying in 0.21 seconds", Event.LOST),
        ("INFO :      Receiving: train message (ID: 22)", Event.BUSY),
        ("INFO :      Received successfully", None),
        ("INFO :      Sending: train message (ID: 23)", None),
        ("INFO :      Sent successfully", Event.IDLE),
        ("INFO : Run ID 3 is not in `RUNNING` status. Ignoring reply message 5.", Event.IDLE),
        ("[code: 2004] Failed to activate SuperNode.", Event.IN_USE),
    ],
)
def test_the_supernodes_log_is_understood(line: str, event: Event | None) -> None:
    assert event_of(line) is event


def test_every_phrase_is_one_that_this_version_of_flower_writes() -> None:
    import flwr

    from client.node.supernode import PHRASES

    folder = Path(flwr.__file__).parent
    sources = ["supernode/start_client_internal.py", "supercore/retry/http_retry.py", "supercore/error/catalog.py"]
    text = "".join((folder / source).read_text() for source in sources)
    assert [phrase for phrase, _ in PHRASES if phrase not in text] == []


def test_children_see_little_of_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    seen = environment(site.private)
    assert set(seen) <= {
        "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
        "FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "MALLOC_ARENA_MAX",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE",
    }  # fmt: skip
    assert seen["FLWR_HOME"] == str(site.private / "flower")
    assert seen["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.parametrize("path", ["/a/SITE.yaml", '/a b/it\'s "here"/SITE.yaml', "/ä/SITE.yaml", "/a\\b/SITE.yaml"])
def test_flower_reads_the_path_of_the_site_file_from_the_node_config(path: str, tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    (tmp_path / "node.toml").write_bytes(node_config(Path(path)))
    assert parse_config_args([str(tmp_path / "node.toml")]) == {"site": path}
