"""A DP-SGD step against the same step without privacy: time and peak memory, as ratios, each training in a process of its own."""

from __future__ import annotations

import multiprocessing
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
_NAMES = ("finetune_small", "finetune_base", "pretrain_base")


def privacy() -> dict[str, float]:
    """224 pixels, bfloat16 and (fine-tuning alone) float32, on two threads of a processor, or on a GPU: `*_time` and `*_memory` are a DP
    step's over the ordinary one's of the same batch, `*_ms` and `*_gb` what the ordinary one takes. Batches have their usual size: a Poisson
    sample has it on average. The least time of several steps and runs, taken in turns.
    """
    found: dict[str, float] = {}
    for name in _NAMES:
        for precision in ("bf16", "float32") if name.startswith("finetune") else ("bf16",):
            seconds = {False: float("inf"), True: float("inf")}
            memory = dict(seconds)
            for _ in range(_REPEATS):
                for private in (False, True):
                    took, most = _apart(name, precision, private)
                    seconds[private], memory[private] = min(seconds[private], took), min(memory[private], most)
            found |= {
                f"{name}_{precision}_time": seconds[True] / seconds[False],
                f"{name}_{precision}_memory": memory[True] / memory[False],
                f"{name}_{precision}_ms": 1e3 * seconds[False],
                f"{name}_{precision}_gb": memory[False] / 1e9,
            }
    return found


def _apart(name: str, precision: str, private: bool) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, precision, private).result()


def measure(name: str, precision: str, private: bool) -> tuple[float, float]:
    """Seconds of the fastest step after the first, and bytes of peak memory."""
    torch.set_num_threads(_THREADS)
    here = machine()
    here = replace(here, runtime=replace(here.runtime, precision=precision, compile=False))
    protection = Protection(Privacy(), NoiseSource()) if private else None
    spec, progress = ModelSpec(encoder=f"vit_{name.partition('_')[2]}"), Progress(0, _STEPS + 1)
    marks: list[float] = []
    forget_peak()
    if name.startswith("finetune"):
        model = Classifier(Encoder(spec, SIZE, drop_path=0.1), _FINDINGS)
        initialise(model, torch.Generator().manual_seed(0))
        stage, size = FinetuneStage(positive_weight=1.0), here.finetune_batch
        labels = torch.randint(0, 2, (size, _FINDINGS)).float()
        batches = ((pictures, labels) for pictures in _pictures(size, here, marks))
        finetune(
            model, batches, replace(stage, batch_size=size), torch.ones(_FINDINGS), progress, 0, here.runtime,
            protection=protection,
        )  # fmt: skip
    else:
        autoencoder = MaskedAutoencoder(spec, SIZE)
        initialise(autoencoder, torch.Generator().manual_seed(0))
        size = here.pretrain_batch
        stage_ = PretrainStage(mask_ratio=MASKED, batch_size=size)
        pretrain(autoencoder, _pictures(size, here, marks), stage_, progress, 0, here.runtime, protection=protection)
    marks.append(now(here.runtime.device))
    return min(after - before for before, after in pairwise(marks[1:])), peak_memory()


def _pictures(size: int, here: Machine, marks: list[float]) -> Iterator[Tensor]:
    """The same pictures in each step; notes when each is asked for."""
    pictures = torch.randint(0, 256, (size, SIZE, SIZE), dtype=torch.uint8)
    for _ in range(_STEPS + 1):
        marks.append(now(here.runtime.device))
        yield pictures
