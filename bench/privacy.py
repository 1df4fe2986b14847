"""A DP-SGD step against the same step without privacy: time and peak memory, as ratios, each training in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from bench.machine import Machine, forget_peak, machine, now, peak_memory
from bench.trainings import MASKED, SIZE
from cxrbase_model.classifier import Classifier
from cxrbase_model.dpsgd import Protection
from cxrbase_model.engine import Progress, finetune, pretrain
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import FinetuneStage, ModelSpec, PretrainStage, Privacy
from cxrbase_model.vit import Encoder, initialise

_FINDINGS, _THREADS, _STEPS, _REPEATS = 14, 2, 3, 2
TRAININGS = (
    ("finetune_small", "bf16"),
    ("finetune_base", "bf16"),
    ("finetune_small", "float32"),
    ("finetune_base", "float32"),
    ("pretrain_base", "bf16"),
)
Cost = tuple[float, float, float]  # seconds, processor seconds, bytes


def privacy() -> dict[str, float]:
    """224 pixels, on two threads of a processor or on a GPU, the trainings above: `*_time`, `*_work` and `*_memory` are a DP step's seconds,
    seconds of all processors (which other programs disturb less; a GPU's are not in them) and peak memory over the ordinary step's of
    the same batch; `*_ms` and `*_gb` are the ordinary step's. Batches have the size that a Poisson sample has on average. The least of
    several steps and runs, taken in turns.
    """
    found: dict[str, float] = {}
    for name, precision in TRAININGS:
        costs: dict[bool, Cost] = {}
        for _ in range(_REPEATS):
            for private in (False, True):
                cost = _apart(name, precision, private)
                costs[private] = _least(cost, costs.get(private, cost))
        ordinary, ratio = costs[False], [ours / theirs for ours, theirs in zip(costs[True], costs[False], strict=True)]
        key = f"{name}_{precision}"
        found |= {f"{key}_time": ratio[0], f"{key}_work": ratio[1], f"{key}_memory": ratio[2]}
        found |= {f"{key}_ms": 1e3 * ordinary[0], f"{key}_gb": ordinary[2] / 1e9}
    return found


def _least(first: Cost, second: Cost) -> Cost:
    return min(first[0], second[0]), min(first[1], second[1]), min(first[2], second[2])


def _apart(name: str, precision: str, private: bool) -> Cost:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, precision, private).result()


def measure(name: str, precision: str, private: bool) -> Cost:
    """What the cheapest step after the first costs, and the peak of memory."""
    torch.set_num_threads(_THREADS)
    here = machine()
    here = replace(here, runtime=replace(here.runtime, precision=precision, compile=False))
    protection = Protection(Privacy(), NoiseSource()) if private else None
    spec, progress = ModelSpec(encoder=f"vit_{name.partition('_')[2]}"), Progress(0, _STEPS + 1)
    clock = _Clock(here)
    forget_peak()
    if name.startswith("finetune"):
        model, size = Classifier(Encoder(spec, SIZE, drop_path=0.1), _FINDINGS), here.finetune_batch
        initialise(model, torch.Generator().manual_seed(0))
        labels = torch.randint(0, 2, (size, _FINDINGS)).float()
        batches = ((pictures, labels) for pictures in clock.pictures(size))
        tuning = FinetuneStage(batch_size=size, positive_weight=1.0)
        finetune(model, batches, tuning, torch.ones(_FINDINGS), progress, 0, here.runtime, protection=protection)
    else:
        autoencoder, size = MaskedAutoencoder(spec, SIZE), here.pretrain_batch
        initialise(autoencoder, torch.Generator().manual_seed(0))
        stage = PretrainStage(mask_ratio=MASKED, batch_size=size)
        pretrain(autoencoder, clock.pictures(size), stage, progress, 0, here.runtime, protection=protection)
    return (*clock.least(), peak_memory())


class _Clock:
    """Gives the same pictures in each step, and notes when they are asked for."""

    def __init__(self, here: Machine) -> None:
        self._here = here
        self._marks: list[tuple[float, float]] = []

    def pictures(self, size: int) -> Iterator[Tensor]:
        """The batches, one more than are timed."""
        found = torch.randint(0, 256, (size, SIZE, SIZE), dtype=torch.uint8)
        for _ in range(_STEPS + 1):
            self._mark()
            yield found

    def least(self) -> tuple[float, float]:
        """Seconds, and processor seconds, of the cheapest step after the first."""
        self._mark()
        steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(self._marks[1:])]
        return min(step[0] for step in steps), min(step[1] for step in steps)

    def _mark(self) -> None:
        self._marks.append((now(self._here.runtime.device), time.process_time()))
