"""The trainings that are measured, as the engine runs them, and the stock recipe that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.flops import classifier_flops, mae_flops
from bench.machine import Machine, forget_peak, now, peak_memory
from client.dataset import Batch, Cache, batches
from cxrbase_model.classifier import Classifier
from cxrbase_model.engine import Progress, finetune, pretrain
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import FinetuneStage, ModelSpec, PretrainStage
from cxrbase_model.vit import Encoder, gather, initialise

SIZE, MASKED = 224, 0.9
_FINDINGS = 14


@dataclass(frozen=True)
class Training:
    """One training to measure: how its model is made, its stage, its batch, and the operations of a picture."""

    make: Callable[[], MaskedAutoencoder | Classifier]
    stage: PretrainStage | FinetuneStage
    batch_size: int
    flops: float

    def measure(self, store: Cache, here: Machine) -> tuple[float, float]:
        """Pictures a second, and bytes of peak memory, of training in the engine itself."""
        model, clock = self.make(), Clock(store, self.batch_size, here)
        initialise(model, torch.Generator().manual_seed(0))
        progress = Progress(0, here.steps * (here.turns + 1))
        forget_peak()
        if isinstance(model, Classifier) and isinstance(self.stage, FinetuneStage):
            labelled = ((images, labels.expand(-1, _FINDINGS)) for images, labels in clock)
            finetune(model, labelled, self.stage, torch.ones(_FINDINGS), progress, 0, here.runtime)
        elif isinstance(model, MaskedAutoencoder) and isinstance(self.stage, PretrainStage):
            pretrain(model, (images for images, _ in clock), self.stage, progress, 0, here.runtime)
        return clock.per_second(), peak_memory()


def trainings(here: Machine) -> dict[str, Training]:
    """What is measured, by name."""
    found = {}
    for name in here.encoders:
        found[f"pretrain_{name.removeprefix('vit_')}"] = _pretraining(ModelSpec(encoder=name), here.pretrain_batch)
        found[f"finetune_{name.removeprefix('vit_')}"] = _finetuning(ModelSpec(encoder=name), here.finetune_batch)
    cross = ModelSpec(encoder="vit_base", decoder="cross")
    found["cross_base"] = _pretraining(cross, here.pretrain_batch, decode=0.5)
    small, quarter = ModelSpec(encoder="vit_small"), here.pretrain_batch // 4
    found["quarter_small"] = _pretraining(small, quarter)
    flops = mae_flops(small, 2 * SIZE, MASKED)
    found["large_small"] = Training(lambda: LargePictures(small), PretrainStage(), quarter, flops)
    stock = ModelSpec(encoder="vit_base", decoder_depth=8)
    flops = mae_flops(stock, SIZE, 0.75, channels=3)
    found["stock_base"] = Training(
        lambda: StockAutoencoder(stock), PretrainStage(mask_ratio=0.75), here.pretrain_batch, flops
    )  # last: the process does not give back all that it took
    return found


def _pretraining(spec: ModelSpec, batch_size: int, decode: float = 1.0) -> Training:
    flops = mae_flops(spec, SIZE, MASKED, decode=decode)
    return Training(lambda: MaskedAutoencoder(spec, SIZE), PretrainStage(decode=decode), batch_size, flops)


def _finetuning(spec: ModelSpec, batch_size: int) -> Training:
    flops = classifier_flops(spec, SIZE, _FINDINGS)
    return Training(
        lambda: Classifier(Encoder(spec, SIZE, drop_path=0.1), _FINDINGS), FinetuneStage(), batch_size, flops
    )


class StockAutoencoder(MaskedAutoencoder):
    """The same model over three equal channels, as networks made for photographs have them, that hides patches once embedded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, SIZE)
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


class LargePictures(MaskedAutoencoder):
    """Pretraining on pictures of twice the side."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, 2 * SIZE)

    def patchify(self, images_BHW: Tensor) -> Tensor:
        """[B, H, W] to [B, 4N, P*P]."""
        return super().patchify(images_BHW.repeat(1, 2, 2))


class Clock:
    """Batches of a cache, timed as training asks for them: the time between is a step's, the loading included."""

    def __init__(self, store: Cache, batch_size: int, here: Machine) -> None:
        self._here, self._batch_size, self._store = here, batch_size, store
        self._marks: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        here, count = self._here, self._here.steps * (self._here.turns + 1)  # the first turn warms up
        epochs = count * self._batch_size / len(self._store)
        rows = np.arange(len(self._store))
        stream = batches(self._store, rows, self._batch_size, seed=1, epochs=epochs, workers=here.runtime.readers)
        for step, batch in enumerate(stream):
            if step % here.steps == 0:
                self.mark()
            yield batch

    def mark(self) -> None:
        """Note when what was asked of the device is done."""
        self._marks.append(now(self._here.runtime.device))

    def per_second(self) -> float:
        """Pictures a second in the fastest turn."""
        self.mark()
        turns = [after - before for before, after in zip(self._marks[1:], self._marks[2:], strict=False)]
        return self._batch_size * self._here.steps / min(turns)
