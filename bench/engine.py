"""Training: images a second, as a share of what the machine's matrix products reach, and where the time goes."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cache import write_store
from bench.flops import classifier_flops, mae_flops
from bench.timing import fastest
from client.dataset import Batch, Cache, batches
from cxrbase_model.augment import augment, draw_augmentation
from cxrbase_model.classifier import Classifier
from cxrbase_model.engine import Progress, Runtime, finetune, pretrain
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.optim import adamw, parameter_groups, set_rate
from cxrbase_model.plan import Augmentation, FinetuneStage, ModelSpec, Optimizer, PretrainStage
from cxrbase_model.vit import Encoder, gather, initialise

_SIZE, _FINDINGS, _SIDE = 224, 14, 4096  # pixels, findings, side of the matrices whose product is the peak


@dataclass(frozen=True)
class Machine:
    """What is measured where: batch sizes, and how many steps are timed at once (a GPU is only waited for after them)."""

    runtime: Runtime
    encoders: tuple[str, ...]
    pretrain_batch: int
    finetune_batch: int
    steps: int
    turns: int
    readers: int


def machine() -> Machine:
    """A GPU where there is one, else this processor, both in bfloat16."""
    if torch.cuda.is_available():
        runtime = Runtime(torch.device("cuda"), "bf16", compile=True)
        return Machine(runtime, ("vit_small", "vit_base", "vit_large"), 512, 128, steps=20, turns=3, readers=8)
    return Machine(Runtime(torch.device("cpu"), "bf16"), ("vit_small", "vit_base"), 64, 16, steps=1, turns=3, readers=0)


def engine() -> dict[str, float]:
    """224 pixels, bfloat16, out of a cache: for each encoder the images a second of masked autoencoding as the default plan has it
    (`pretrain_*`) and of full fine-tuning (`finetune_*`), `*_of_peak` as a share of the machine's own matrix product, `*_gb` with the
    peak memory. `ratio` is to the stock recipe in the same code (mask 0.75, 8 decoder blocks, 3 channels), `ratio_cross` that of a
    cross-attention decoder which predicts half of the hidden patches. `share_*` is how a step
    of pretraining the ViT-B splits. `growth_*` is the cost of a picture of twice the side, or in a quarter of the batch.
    """
    here = machine()
    found: dict[str, float] = {"peak_gflops": _peak(here)}
    with tempfile.TemporaryDirectory() as temporary:
        store = write_store(Path(temporary) / "cache")
        for name in here.encoders:
            short, spec = name.removeprefix("vit_"), ModelSpec(encoder=name)
            rate = _pretrain_rate(MaskedAutoencoder(spec, _SIZE), PretrainStage(), store, here, here.pretrain_batch)
            found |= _told(f"pretrain_{short}", rate, mae_flops(spec, _SIZE, 0.9))
            rate = _finetune_rate(spec, store, here)
            found |= _told(f"finetune_{short}", rate, classifier_flops(spec, _SIZE, _FINDINGS))
        stock = ModelSpec(encoder="vit_base", decoder_depth=8)
        rate = _pretrain_rate(StockAutoencoder(stock), PretrainStage(mask_ratio=0.75), store, here, here.pretrain_batch)
        found |= _told("stock_base", rate, mae_flops(stock, _SIZE, 0.75, channels=3))
        found["ratio"] = found["pretrain_base_per_second"] / found["stock_base_per_second"]
        cross, half = ModelSpec(encoder="vit_base", decoder="cross"), PretrainStage(decode=0.5)
        rate = _pretrain_rate(MaskedAutoencoder(cross, _SIZE), half, store, here, here.pretrain_batch)
        found["ratio_cross"] = rate[0] / found["stock_base_per_second"]
        found |= _split(store, here)
        found |= _growth(found["pretrain_small_per_second"], store, here)
    found["peak_gflops"] = max(found["peak_gflops"], _peak(here))  # before and after, the better: it must not flatter
    for key in [key for key in found if key.endswith("_of_peak")]:
        found[key] /= found["peak_gflops"] * 1e9
    return found


class StockAutoencoder(MaskedAutoencoder):
    """The same model over three equal channels, as networks made for photographs have them, that hides patches once embedded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, _SIZE)
        self.encoder.embed = nn.Linear(3 * spec.patch_size**2, spec.shape[0])
        self.predict = nn.Linear(spec.decoder_width, 3 * spec.patch_size**2)

    def patchify(self, images_BHW: Tensor) -> Tensor:
        """[B, H, W] to [B, N, 3*P*P]."""
        return super().patchify(images_BHW).repeat(1, 1, 3)

    def forward_encoder(self, patches_BNP: Tensor, visible_En: Tensor) -> Tensor:
        """As `MaskedAutoencoder.forward_encoder`."""
        x = gather(self.encoder.embed(patches_BNP) + self.encoder.positions(None, len(patches_BNP)), visible_En)
        for block in self.encoder.blocks:
            x = block(x)
        features: Tensor = self.encoder.norm(x)
        return features


class Clock:
    """Batches of a cache, timed as training asks for them: the time between is a step's, the loading included."""

    def __init__(self, store: Cache, batch_size: int, here: Machine) -> None:
        self._here, self._batch_size, self._store = here, batch_size, store
        self._marks: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        here, count = self._here, self._here.steps * (self._here.turns + 1)  # the first turn warms up
        epochs = count * self._batch_size / len(self._store)
        rows = np.arange(len(self._store))
        stream = batches(self._store, rows, self._batch_size, seed=1, epochs=epochs, workers=here.readers)
        for step, batch in enumerate(stream):
            if step % here.steps == 0:
                self.mark()
            yield batch

    def mark(self) -> None:
        """Wait for the device and look at the clock."""
        if self._here.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        self._marks.append(time.perf_counter())

    def per_second(self) -> float:
        """Pictures a second in the fastest turn."""
        self.mark()
        turns = [after - before for before, after in zip(self._marks[1:], self._marks[2:], strict=False)]
        return self._batch_size * self._here.steps / min(turns)


def _pretrain_rate(
    model: MaskedAutoencoder, stage: PretrainStage, store: Cache, here: Machine, batch_size: int
) -> tuple[float, float]:
    """Pictures a second and bytes of peak memory of pretraining in the engine itself."""
    initialise(model, torch.Generator().manual_seed(0))
    clock = Clock(store, batch_size, here)
    _forget_peak()
    progress = Progress(0, here.steps * (here.turns + 1))
    pretrain(model, (images for images, _ in clock), stage, progress, 0, here.runtime)
    return clock.per_second(), _peak_memory()


def _finetune_rate(spec: ModelSpec, store: Cache, here: Machine) -> tuple[float, float]:
    """The same of fine-tuning all weights."""
    model = Classifier(Encoder(spec, _SIZE, drop_path=0.1), _FINDINGS)
    initialise(model, torch.Generator().manual_seed(0))
    clock = Clock(store, here.finetune_batch, here)
    _forget_peak()
    progress = Progress(0, here.steps * (here.turns + 1))
    stream = ((images, labels.expand(-1, _FINDINGS)) for images, labels in clock)
    finetune(model, stream, FinetuneStage(), torch.ones(_FINDINGS), progress, 0, here.runtime)
    return clock.per_second(), _peak_memory()


def _split(store: Cache, here: Machine) -> dict[str, float]:
    """How the time of one step of pretraining the ViT-B splits, each part waited for; `share_loader` without reading ahead."""
    model = MaskedAutoencoder(ModelSpec(encoder="vit_base"), _SIZE)
    initialise(model, torch.Generator().manual_seed(0))
    here.runtime.prepared(model)
    device, size = here.runtime.device, here.pretrain_batch
    model.to(device).train()
    optimizer = adamw(parameter_groups(model, 0.05, 1.0, 12), Optimizer(), device)
    set_rate(optimizer, 1e-6)
    draws, rows = torch.Generator().manual_seed(0), np.arange(size) * 61 % len(store)
    seconds = dict.fromkeys(("loader", "augment", "forward", "backward", "optimizer"), float("inf"))
    for _ in range(here.turns + 1):
        marks = [_now(device)]
        images = torch.from_numpy(store.pixels(rows)).to(device)
        marks.append(_now(device))
        drawn = draw_augmentation(images.shape, Augmentation(), draws, device)
        pictures = augment(images, {name: tensor.to(device) for name, tensor in drawn.items()})
        visible, hidden = model.random_masking(size, 0.9, draws, device)
        marks.append(_now(device))
        with here.runtime.autocast():
            loss = model(pictures, visible, hidden).mean()
        marks.append(_now(device))
        loss.backward()
        marks.append(_now(device))
        optimizer.step()
        optimizer.zero_grad()
        marks.append(_now(device))
        for part, before, after in zip(seconds, marks, marks[1:], strict=False):
            seconds[part] = min(seconds[part], after - before)
    return {f"share_{part}": each / sum(seconds.values()) for part, each in seconds.items()}


def _growth(rate: float, store: Cache, here: Machine) -> dict[str, float]:
    """How many times as long one picture takes in a quarter of the batch, and with twice the side."""
    spec, batch = ModelSpec(encoder="vit_small"), here.pretrain_batch // 4
    quarter, _ = _pretrain_rate(MaskedAutoencoder(spec, _SIZE), PretrainStage(), store, here, batch)
    large, _ = _pretrain_rate(LargePictures(spec), PretrainStage(), store, here, batch)
    return {"growth_quarter_batch": rate / quarter, "growth_twice_the_side": quarter / large}


class LargePictures(MaskedAutoencoder):
    """Pretraining on pictures of twice the side."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, 2 * _SIZE)

    def patchify(self, images_BHW: Tensor) -> Tensor:
        """[B, H, W] to [B, 4N, P*P]."""
        return super().patchify(images_BHW.repeat(1, 2, 2))


def _told(name: str, measured: tuple[float, float], flops: float) -> dict[str, float]:
    rate, memory = measured
    return {f"{name}_per_second": rate, f"{name}_of_peak": rate * flops, f"{name}_gb": memory / 1e9}


def _peak(here: Machine) -> float:
    """What a large matrix product reaches in bfloat16, GFLOP a second."""
    device = here.runtime.device
    first, second = (torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(here.steps):
            first @ second
        _now(device)

    products()
    return 2e-9 * _SIDE**3 * here.steps / fastest(products)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _forget_peak() -> None:
    """Let the peak of memory begin anew: on a GPU, and on Linux by proc(5), clear_refs."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status: Any = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
