"""What the apps of `bench.transport` note for the bench, in files of the folder that their run configuration names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

SHIFT = 1e-3  # the constant that each client adds


def loaded() -> int:
    """Bytes that this process holds now, before it has seen a model."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def note(folder: Path, kind: str, before: int) -> None:
    """Note who this process is and what it held when everything was loaded; its peak is read from outside."""
    (folder / f"{os.getpid()}.{kind}").write_text(str(before), encoding="utf-8")


def committed(folder: Path, **figures: Any) -> None:
    """Note that a round is over."""
    line = json.dumps({"time": time.monotonic(), **figures})
    with (folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
