"""The machine that training is measured on: what it is asked, its clock, its memory, its matrix product."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.timing import fastest
from cxrbase_model.engine import Runtime

_SIDE = 4096  # of the matrices whose product is the peak


@dataclass(frozen=True)
class Machine:
    """What is measured where: batch sizes, and how many steps are timed at once (a GPU is only waited for after them)."""

    runtime: Runtime
    encoders: tuple[str, ...]
    pretrain_batch: int
    finetune_batch: int
    steps: int
    turns: int


def machine() -> Machine:
    """A GPU where there is one, else this processor, both in bfloat16."""
    if torch.cuda.is_available():
        runtime = Runtime(torch.device("cuda"), "bf16", compile=True)
        return Machine(runtime, ("vit_small", "vit_base", "vit_large"), 512, 128, steps=20, turns=3)
    return Machine(Runtime(torch.device("cpu"), "bf16"), ("vit_small", "vit_base"), 64, 16, steps=1, turns=2)


def matrix_peak(here: Machine) -> float:
    """What a large matrix product reaches in bfloat16, GFLOP a second."""
    device = here.runtime.device
    first, second = (torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(here.steps):
            first @ second
        now(device)

    products()
    return 2e-9 * _SIDE**3 * here.steps / fastest(products)


def now(device: torch.device) -> float:
    """Wait for the device and look at the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak() -> None:
    """Let the peak of memory begin anew: on a GPU, and on Linux by proc(5), clear_refs."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def peak_memory() -> float:
    """Bytes: of the GPU, or of the process with all that it holds besides."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
