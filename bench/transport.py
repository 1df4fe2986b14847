"""A round over the network: ours against Flower's own FedAvg."""

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
from pathlib import Path
from typing import Any

import yaml

from bench.wire.notes import PARAMETERS

_ROOT = Path(__file__).parents[1]
_ROUNDS = 3
_LOOK = 0.05  # seconds between looks at the peaks of the apps' processes
_MOST_SECONDS = 900.0
_MODEL = 4.0 * PARAMETERS
_SWITCHES = {
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}  # as deployments of ours have it
_TRANSPORT = {"broadcast": "bf16", "update": "int8", "compress": "zstd", "compress_update": "none"}
_PLAN = {
    "schema": 1, "name": "transport", "data": {"findings": ["Nodule"]},
    "model": {"encoder": "vit_base", "decoder_depth": 4},  # an autoencoder of about PARAMETERS
    "stages": [{"kind": "pretrain", "name": "mae", "rounds": _ROUNDS}], "transport": _TRANSPORT,
}  # fmt: skip


def transport(hospitals: int = 2) -> dict[str, float]:
    """Three rounds of 100 million parameters over a real SuperLink and SuperNodes on loopback, without TLS, ours and then stock FedAvg.

    Both have clients that do next to nothing; ours besides check the task, compare digests and keep what rounding left out, as in
    production, and our server commits each round to disk. Both run Flower's SuperNode; ours with the executor of our deployments,
    which forks a process that is loaded for each task, where Flower's starts one. Seconds are from commit to commit. Bytes are those of the
    arrays, for each hospital and round, of the model in float32. Memory is the peak of a process above what it held when its app
    was loaded, in float32 models.
    """
    found: dict[str, float] = {}
    for kind in ("ours", "stock"):
        with tempfile.TemporaryDirectory() as folder, _network(Path(folder), hospitals, ours=kind == "ours") as network:
            found |= {f"{kind}_{key}": value for key, value in _measure(network, kind, hospitals).items()}
    return found | {"time_ratio": found["ours_seconds"] / found["stock_seconds"]}


def _measure(network: Path, kind: str, hospitals: int) -> dict[str, float]:
    notes = network / kind
    notes.mkdir()
    (notes / "plan.yaml").write_text(yaml.safe_dump(_PLAN), encoding="utf-8")
    done, peaks = threading.Event(), dict[Path, int]()
    watch = threading.Thread(target=_watch, args=(notes, done, peaks))
    watch.start()
    try:
        _flower(
            "flwr", ["run", str(_app(network, kind, notes, hospitals)), "bench", "--stream"], network, _MOST_SECONDS
        )
    finally:
        done.set()
        watch.join()
    rounds = [json.loads(line) for line in (notes / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [line["time"] for line in rounds if line["round"] > 0]
    return {
        "seconds": statistics.median(after - before for before, after in itertools.pairwise(times)),
        "bytes_down": rounds[-1]["down"] / _MODEL,
        "bytes_up": rounds[-1]["up"] / _MODEL,
        "models_server": _most(peaks, "server") / _MODEL,
        "models_client": _most(peaks, "client") / _MODEL,
    }


def _app(network: Path, kind: str, notes: Path, hospitals: int) -> Path:
    """The folder of an app as `flwr run` takes it."""
    folder = network / f"app-{kind}"
    folder.mkdir()
    shutil.copy(_ROOT / "bench" / "wire" / f"{kind}.py", folder / f"wire_{kind}.py")
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "wire-{kind}"\nversion = "1.0.0"\nlicense = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "bench"\n'
        f'[tool.flwr.app.components]\nserverapp = "wire_{kind}:server"\nclientapp = "wire_{kind}:client"\n'
        f'[tool.flwr.app.config]\nfolder = "{notes}"\nrounds = {_ROUNDS}\nhospitals = {hospitals}\n',
        encoding="utf-8",
    )
    return folder


@contextlib.contextmanager
def _network(folder: Path, hospitals: int, *, ours: bool) -> Iterator[Path]:
    """A SuperLink and its SuperNodes as processes that end with the block; gives their folder."""
    from sim.deployment import free_port  # Flower's processes need not load it

    port, home, switches = free_port(), folder / "flower", _SWITCHES if ours else {}
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    link = ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    link += ["--database", str(folder / "state.db")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            _daemon(
                "flower-superlink", [*link, "--health-server-address", f"127.0.0.1:{free_port()}"], folder, switches
            )
        )
        time.sleep(5)
        for index in range(hospitals):
            own = free_port()
            node = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)]
            node += ["--node-config", f"partition-id={index}"]
            if ours:
                secret = folder / "secret"
                secret.write_bytes(b"0" * 32)
                node += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
                executor = ["-m", "bench.wire.executor", f"127.0.0.1:{own}", str(secret)]
                stack.enter_context(_daemon(Path(sys.executable).name, executor, folder, switches))
            stack.enter_context(_daemon("flower-supernode", node, folder, switches))
        time.sleep(5)
        yield folder


@contextlib.contextmanager
def _daemon(program: str, arguments: Sequence[str], folder: Path, switches: Mapping[str, str]) -> Iterator[None]:
    with (folder / f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments], env=_environment(folder) | dict(switches), cwd=folder,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield
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
        told = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
        raise RuntimeError(
            f"{program} {arguments[0]} has failed: {done.stdout[-3000:]}{done.stderr[-3000:]}{told[-3000:]}"
        )


def _environment(folder: Path) -> dict[str, str]:
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    switches = {"FLWR_HOME": str(folder / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return dict(os.environ) | programs | switches | {"PYTHONPATH": str(_ROOT), "MALLOC_ARENA_MAX": "2"}


def _watch(notes: Path, done: threading.Event, peaks: dict[Path, int]) -> None:
    """Keep the highest peak of each process that has noted itself."""
    while not done.wait(_LOOK):
        for path in [*notes.glob("*.server"), *notes.glob("*.client")]:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{path.stem}/status").read_text(encoding="utf-8").splitlines()
                peaks[path] = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _most(peaks: dict[Path, Any], kind: str) -> float:
    return float(max(peak - int(path.read_text() or 0) for path, peak in peaks.items() if path.suffix == f".{kind}"))
