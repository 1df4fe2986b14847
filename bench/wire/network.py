"""Flower's own programs on loopback for a bench: a SuperLink, SuperNodes, and an app that is run and watched."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.wire.watcher import Watcher
from cxrbase_model.transport import CHUNK_BYTES
from server.database import lay_out

_ROOT = Path(__file__).parents[2]
_PYTHON = Path(sys.executable).name
_MOST_SECONDS_TO_START = 120.0
_SWITCHES = {
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
}  # as deployments of ours have it
_SERVER = {
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",
}  # and the server's besides

OURS: Mapping[str, Any] = {}  # the plan's default


@dataclass(frozen=True)
class Setting:
    """What is measured. kind: ours or stock. rate: bytes a second of each hospital's line in each direction, None for all that come.

    parameters: of the model, about; stock's has exactly so many. light: hospitals share one process that speaks Flower's Fleet API.
    most_seconds: after which the run is given up. works: seconds that light hospitals take for an answer, all at the same time.
    """

    kind: str
    hospitals: int
    model: Mapping[str, Any]
    parameters: int
    transport: Mapping[str, Any] = field(default_factory=lambda: OURS)
    rounds: int = 3
    rate: float | None = None
    light: bool = False
    most_seconds: float = 600.0
    works: float = 0.0

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of ours."""
        return {
            "schema": 1, "name": "transport", "data": {"findings": ["Nodule"]}, "model": dict(self.model),
            "stages": [{"kind": "pretrain", "name": "mae", "rounds": self.rounds}], "transport": dict(self.transport),
            "federation": {"quorum": self.hospitals},
        }  # fmt: skip


def measure(setting: Setting) -> dict[str, float]:
    """Seconds from commit to commit, the median after the first round, and the first round's where a round 0 was committed before it;

    bytes of the arrays, for each hospital, in the last round and in the first; peaks of processes above what they held when their app was
    loaded. Bytes and peaks are in float32 models.
    """
    sessions: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder, _network(Path(folder), setting, sessions) as network:
        return _measure(network, setting, sessions)


def _measure(network: Path, setting: Setting, sessions: Mapping[int, str]) -> dict[str, float]:
    notes, model = network / setting.kind, 4.0 * setting.parameters
    notes.mkdir()
    (notes / "plan.yaml").write_text(yaml.safe_dump(setting.plan), encoding="utf-8")
    done, watcher = threading.Event(), Watcher(notes, sessions)
    watch = threading.Thread(target=watcher.watch, args=(done,))
    watch.start()
    try:
        _flower("flwr", ["run", str(_app(network, notes, setting)), "bench", "--stream"], network, setting.most_seconds)
    finally:
        done.set()
        watch.join()
    rounds = [json.loads(line) for line in (notes / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [line["time"] for line in rounds if line["round"] > 0]
    begun = [line["time"] for line in rounds if line["round"] == 0]
    if len(times) < setting.rounds:
        raise RuntimeError(f"{setting.kind}: {len(times)} of {setting.rounds} rounds; {_told(network)}")
    return {
        "seconds": statistics.median(after - before for before, after in itertools.pairwise(times)),
        **({"seconds_first": times[0] - begun[0]} if begun else {}),
        "bytes_down": rounds[-1]["down"] / model,
        "bytes_down_first": next(line["down"] for line in rounds if line["round"] > 0) / model,
        "bytes_up": rounds[-1]["up"] / model,
        "models_server": watcher.peak("server") / model,
        "models_client": watcher.peak("client") / model,
        **{f"processor_{name}": seconds for name, seconds in watcher.processor_seconds().items()},
    }


def _app(network: Path, notes: Path, setting: Setting) -> Path:
    """The folder of an app as `flwr run` takes it."""
    kind, folder = setting.kind, network / f"app-{setting.kind}"
    folder.mkdir()
    shutil.copy(_ROOT / "bench" / "wire" / f"{kind}.py", folder / f"wire_{kind}.py")
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "wire-{kind}"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "bench"\n'
        f'[tool.flwr.app.components]\nserverapp = "wire_{kind}:server"\nclientapp = "wire_{kind}:client"\n'
        f'[tool.flwr.app.config]\nfolder = "{notes}"\nrounds = {setting.rounds}\nhospitals = {setting.hospitals}\n'
        f"parameters = {setting.parameters}\n",
        encoding="utf-8",
    )
    return folder


@contextlib.contextmanager
def _network(folder: Path, setting: Setting, sessions: dict[int, str]) -> Iterator[Path]:
    """A SuperLink and its SuperNodes as processes that end with the block; gives their folder.

    sessions: is told what the processes of each session, of the system's, belong to.
    """
    from sim.deployment import free_port  # Flower's processes need not load it
    from sim.proxy import Line

    ours = setting.kind == "ours"
    port, home, switches = free_port(), folder / "flower", _SWITCHES if ours else {}
    share = max(
        1, (os.cpu_count() or 1) // setting.hospitals
    )  # of the cores, since hospitals have machines of their own
    hospital = switches | {"OMP_NUM_THREADS": str(share)}
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    link = ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    link += ["--database", str(folder / "state.db"), "--health-server-address", f"127.0.0.1:{free_port()}"]
    if ours:
        lay_out(folder / "state.db")
    with contextlib.ExitStack() as stack:
        sessions[stack.enter_context(_daemon("flower-superlink", link, folder, switches | _SERVER if ours else {}))] = (
            "superlink"
        )
        _await_lines(folder / "flower-superlink.log", "Uvicorn running on", 1)
        if setting.light:
            nodes = ["-m", "bench.wire.nodes", f"127.0.0.1:{port}", str(setting.hospitals)]
            nodes += [str(folder / setting.kind), str(setting.works)]
            sessions[stack.enter_context(_daemon(_PYTHON, nodes, folder, hospital))] = "supernodes"
        for index in range(0 if setting.light else setting.hospitals):
            own = free_port()
            reached = port if setting.rate is None else stack.enter_context(Line(port, setting.rate)).port
            node = ["--insecure", "--superlink", f"127.0.0.1:{reached}", "--port", str(own)]
            node += ["--node-config", f"partition-id={index}"]
            if ours:
                secret = folder / "secret"
                secret.write_bytes(b"0" * 32)
                node += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
                executor = ["-m", "bench.wire.executor", f"127.0.0.1:{own}", str(secret)]
                sessions[stack.enter_context(_daemon(_PYTHON, executor, folder, hospital))] = "supernodes"
                node = ["-m", "client.node.supernode", str(os.getpid()), "0", *node]
            program = _PYTHON if ours else "flower-supernode"
            sessions[stack.enter_context(_daemon(program, node, folder, hospital))] = "supernodes"
        _await_lines(folder / "flower-superlink.log", "[Fleet.ActivateNode] Activated", setting.hospitals)
        time.sleep(2)  # until a SuperNode's first question has been answered
        yield folder


def _await_lines(log: Path, phrase: str, count: int) -> None:
    """Wait until a program has said something so often."""
    limit = time.monotonic() + _MOST_SECONDS_TO_START
    while log.read_text(encoding="utf-8", errors="replace").count(phrase) < count:
        if time.monotonic() > limit:
            raise RuntimeError(
                f"{log.stem} has not said {phrase!r} {count} times within {_MOST_SECONDS_TO_START:.0f} s"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def _daemon(program: str, arguments: Sequence[str], folder: Path, switches: Mapping[str, str]) -> Iterator[int]:
    """A process that ends with the block, and all of its session with it; gives its number, which is the session's."""
    with (folder / f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments], env=_environment(folder) | dict(switches), cwd=folder,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _flower(program: str, arguments: Sequence[str], folder: Path, timeout: float) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments], env=_environment(folder), cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    if done.returncode or "rounds.jsonl" not in " ".join(path.name for path in folder.glob("*/*")):
        raise RuntimeError(
            f"{program} {arguments[0]} has failed: {done.stdout[-3000:]}{done.stderr[-3000:]}{_told(folder)}"
        )


def _told(folder: Path) -> str:
    """The last that the programs have said."""
    return "".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("*.log")))


def _environment(folder: Path) -> dict[str, str]:
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    switches = {"FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return dict(os.environ) | programs | switches | {"PYTHONPATH": str(_ROOT), "MALLOC_ARENA_MAX": "2"}
