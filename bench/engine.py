"""Training: images a second, as a share of what the machine's matrix products reach, and where the time goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.cache import write_store
from bench.machine import Machine, machine, matrix_peak, now
from bench.trainings import MASKED, SIZE, trainings
from client.dataset import Cache
from cxrbase_model.augment import augment, draw_augmentation
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.optim import adamw, parameter_groups, set_rate
from cxrbase_model.plan import Augmentation, ModelSpec, Optimizer
from cxrbase_model.vit import initialise

_REPEATS = 2


def engine() -> dict[str, float]:
    """224 pixels, bfloat16, out of a cache: for each encoder the images a second of masked autoencoding as the default plan has it
    (`pretrain_*`) and of full fine-tuning (`finetune_*`), `*_of_peak` as a share of the machine's own matrix product, `*_gb` with the
    peak memory. `ratio` is to the stock recipe in the same code (mask 0.75, 8 decoder blocks, 3 channels), `ratio_cross` that of a
    cross-attention decoder which predicts half of the hidden patches. `share_*` is how a step
    of pretraining the ViT-B splits. `growth_*` is the cost of a picture of twice the side, or in a quarter of the batch.
    """
    here = machine()
    with tempfile.TemporaryDirectory() as temporary:
        store = write_store(Path(temporary) / "cache")
        wanted = trainings(here)
        rates, memory, peak = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, float("inf")), 0.0
        for _ in range(_REPEATS):  # in turns, so that what slows the machine for a while slows all
            for name, training in wanted.items():
                peak = max(peak, matrix_peak(here))
                rate, most = training.measure(store, here)
                rates[name], memory[name] = max(rates[name], rate), min(memory[name], most)
        split = _split(store, here)
    found = {"peak_gflops": peak}
    for name, rate in rates.items():
        share = rate * wanted[name].flops * 1e-9 / peak
        found |= {f"{name}_per_second": rate, f"{name}_of_peak": share, f"{name}_gb": memory[name] / 1e9}
    return found | split | {
        "ratio": rates["pretrain_base"] / rates["stock_base"],
        "ratio_cross": rates["cross_base"] / rates["stock_base"],
        "growth_quarter_batch": rates["pretrain_small"] / rates["quarter_small"],
        "growth_twice_the_side": rates["quarter_small"] / rates["large_small"],
    }  # fmt: skip


def _split(store: Cache, here: Machine) -> dict[str, float]:
    """How the time of one step of pretraining the ViT-B splits, each part waited for; `share_loader` without reading ahead."""
    model = MaskedAutoencoder(ModelSpec(encoder="vit_base"), SIZE)
    initialise(model, torch.Generator().manual_seed(0))
    here.runtime.prepared(model)
    device, size = here.runtime.device, here.pretrain_batch
    model.to(device).train()
    optimizer = adamw(parameter_groups(model, 0.05, 1.0, 12), Optimizer(), device)
    set_rate(optimizer, 1e-6)
    draws, rows = torch.Generator().manual_seed(0), np.arange(size) * 61 % len(store)
    seconds = dict.fromkeys(("loader", "augment", "forward", "backward", "optimizer"), float("inf"))
    for _ in range(here.turns + 1):
        marks = [now(device)]
        images = torch.from_numpy(store.pixels(rows)).to(device)
        marks.append(now(device))
        drawn = draw_augmentation(images.shape, Augmentation(), draws, device)
        pictures = augment(images, {name: tensor.to(device) for name, tensor in drawn.items()})
        visible, hidden = model.random_masking(size, MASKED, draws, device)
        marks.append(now(device))
        with here.runtime.autocast():
            loss = model(pictures, visible, hidden).mean()
        marks.append(now(device))
        loss.backward()
        marks.append(now(device))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(now(device))
        for part, before, after in zip(seconds, marks, marks[1:], strict=False):
            seconds[part] = min(seconds[part], after - before)
    return {f"share_{part}": each / sum(seconds.values()) for part, each in seconds.items()}
