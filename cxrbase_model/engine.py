"""The local loop: batches in, trained weights out. Reads top to bottom; knows no Flower, no DICOM and no hospital.

A step draws everything random about its batch first, on the processor and for the whole batch: crops, masks, stochastic depth.
The rest of the step is then the same function of the same numbers however the batch is cut, into parts that fit in memory or into
shares of several processes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cxrbase_model.augment import augment, draw_augmentation
from cxrbase_model.checkpoint import LocalCheckpoint, Saver, Tally
from cxrbase_model.classifier import Classifier
from cxrbase_model.dpsgd import PrivateBatches, Protection
from cxrbase_model.losses import classification_costs, known_labels
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.microbatch import MicroBatches
from cxrbase_model.optim import adamw, learning_rate, load_moments, moments_of, parameter_groups, set_rate
from cxrbase_model.parallel import Rows, World
from cxrbase_model.plan import FinetuneStage, PretrainStage
from cxrbase_model.runtime import Runtime
from cxrbase_model.seeds import generator
from cxrbase_model.settings import digest as settings_digest
from cxrbase_model.state import State, digest, state_of

__all__ = ["LocalResult", "Progress", "Runtime", "TrainingDiverged", "finetune", "pretrain"]

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device


class TrainingDiverged(ArithmeticError):
    """The loss was not finite; the weights are those of the last step whose loss was."""


@dataclass(frozen=True)
class Progress:
    """Where this hospital's steps of a round lie in its steps of the whole stage."""

    first_step: int
    total_steps: int


@dataclass(frozen=True)
class LocalResult:
    """What local training did; `loss` is the mean over all examples seen, `moments` are the optimizer's where they are kept."""

    steps: int
    examples: int
    loss: float
    seconds: float
    moments: State = field(default_factory=dict)


def pretrain(
    model: MaskedAutoencoder,
    batches: Iterable[Tensor],
    stage: PretrainStage,
    progress: Progress,
    seed: int,
    runtime: Runtime,
    moments: Mapping[str, Tensor] | None = None,
    checkpoint: LocalCheckpoint | None = None,
    protection: Protection | None = None,
) -> LocalResult:
    """Train on uint8 pictures [B, H, W]; TrainingDiverged where the loss is not finite.

    `moments` are those of an earlier `LocalResult` of the same stage; ValueError where they are not this model's. With a
    `checkpoint`, training that was interrupted goes on where it last wrote one, if `batches` and all else are the same again.

    With a `protection` it is DP-SGD: `batches` are Poisson samples of one picture a unit and may be empty, nothing random follows from
    `seed`, no loss is known, and `examples` are the expected ones.
    """
    generators = {name: generator(seed, name) for name in ("augmentation", "masks")}
    net = runtime.prepared(model)

    def draw(images_BHW: Tensor) -> tuple[Rows, Tensor]:
        count = len(images_BHW)
        rows = {"images": images_BHW}
        rows |= draw_augmentation(images_BHW.shape, stage.augmentation, generators["augmentation"], runtime.device)
        visible, hidden = model.random_masking(count * stage.masks, stage.mask_ratio, generators["masks"])
        hidden = hidden[:, : max(1, round(stage.decode * hidden.shape[1]))]
        rows |= {
            "visible": visible.reshape(count, stage.masks, visible.shape[1]),
            "hidden": hidden.reshape(count, stage.masks, hidden.shape[1]),
        }
        return rows, torch.tensor(float(count * stage.masks))

    def costs_of(rows: Rows) -> Tensor:
        images = augment(rows["images"], rows)
        with runtime.autocast():
            losses: Tensor = net(
                images, rows["visible"].flatten(0, 1), rows["hidden"].flatten(0, 1), stage.normalize_targets
            )
        return losses

    def after_step(done: float) -> None:
        model.after_step(stage.teacher, done)

    job = _Job(stage, progress, seed, runtime, generators, draw, costs_of, after_step, protection)
    return _train(model, batches, job, 1.0, moments, checkpoint)


def finetune(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    stage: FinetuneStage,
    positive_weights_C: Tensor,
    progress: Progress,
    seed: int,
    runtime: Runtime,
    moments: Mapping[str, Tensor] | None = None,
    checkpoint: LocalCheckpoint | None = None,
    protection: Protection | None = None,
) -> LocalResult:
    """Train on uint8 pictures [B, H, W] and targets [B, C], NaN where unknown; the rest as in `pretrain`."""
    generators = {"augmentation": generator(seed, "augmentation"), "paths": torch.Generator().manual_seed(seed)}
    net, weights = runtime.prepared(model), positive_weights_C.to(runtime.device)

    def draw(batch: tuple[Tensor, Tensor]) -> tuple[Rows, Tensor]:
        images_BHW, targets_BC = batch
        rows = {"images": images_BHW, "targets": targets_BC}
        rows |= draw_augmentation(images_BHW.shape, stage.augmentation, generators["augmentation"], runtime.device)
        paths = model.encoder.draw_paths(len(images_BHW), generators["paths"])
        return rows if paths is None else rows | {"paths": paths}, known_labels(targets_BC)

    def costs_of(rows: Rows) -> Tensor:
        images = augment(rows["images"], rows)
        with runtime.autocast():
            logits = net(images, rows.get("paths"))
            return classification_costs(logits, rows["targets"], weights, stage.loss)

    job = _Job(stage, progress, seed, runtime, generators, draw, costs_of, protection=protection)
    return _train(model, batches, job, stage.layer_decay, moments, checkpoint)


@dataclass(frozen=True)
class _Job:
    """What pretraining and fine-tuning do differently.

    draw: a batch to its rows with everything random about them, and what the sum of their costs is divided by. costs_of: rows
    on the device to their costs. after_step: what follows a step, given the share of the stage's steps that are done.
    """

    stage: PretrainStage | FinetuneStage
    progress: Progress
    seed: int
    runtime: Runtime
    generators: dict[str, torch.Generator]
    draw: Callable[[Any], tuple[Rows, Tensor]]
    costs_of: Callable[[Rows], Tensor]
    after_step: Callable[[float], None] = lambda done: None
    protection: Protection | None = None

    def identity(self, model: nn.Module, moments: Mapping[str, Tensor] | None) -> str:
        """A digest of all that the training depends on but its pictures: its local checkpoint is no other training's."""
        parts = [digest(state_of(model)), digest(moments or {}), settings_digest(self.stage), self.progress, self.seed]
        return hashlib.sha256(repr([*parts, self.runtime.precision]).encode()).hexdigest()


def _train(
    model: MaskedAutoencoder | Classifier, batches: Iterable[Any], job: _Job, layer_decay: float,
    moments: Mapping[str, Tensor] | None, checkpoint: LocalCheckpoint | None,
) -> LocalResult:  # fmt: skip
    """The loop itself: schedule, draw, forward and backward, step."""
    started, device, world = time.monotonic(), job.runtime.device, World.current()
    settings, progress = job.stage.optimizer, job.progress
    model.to(device).train()
    groups = parameter_groups(model, settings.weight_decay, layer_decay, len(model.encoder.blocks))
    optimizer = adamw(groups, settings, device)
    if moments:
        load_moments(model, optimizer, moments)
    parts, draw = _ways(model, job)
    tally = Tally(torch.zeros((), dtype=torch.float64, device=device))
    saver = Saver(
        checkpoint
        if job.protection is None
        else None,  # it would hold a training that is seen half-way, and its generators
        lambda: job.identity(model, moments),
        model,
        optimizer,
        job.generators,
        tally,
        writer=world.rank == 0,
    )
    saver.restore()
    with job.runtime.determinism():
        for batch in islice(batches, tally.steps, None):
            step = progress.first_step + tally.steps
            set_rate(optimizer, learning_rate(step, progress.total_steps, settings, job.stage.batch_size))
            rows, total = draw(batch)
            loss = parts.backward(world.share(rows), total)
            world.sum_gradients(model.parameters())
            world.sum(loss)
            optimizer.found_inf = (~torch.isfinite(loss)).float()  # type: ignore[attr-defined]  # skips the step, on the device
            if settings.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
            optimizer.step()
            job.after_step((step + 1) / progress.total_steps)
            count = len(rows["images"])
            tally.total += loss.double() * count
            tally.examples, tally.steps = tally.examples + count, tally.steps + 1
            if tally.steps % CHECK_EVERY == 0:
                _check(tally.total)
            saver.save_if_due()
    _check(tally.total)
    if tally.steps == 0:
        raise ValueError("batches: expected at least one batch, found none")
    saver.remove()
    kept = moments_of(model, optimizer) if settings.state == "keep" else {}
    if job.protection is not None:  # neither how many pictures there were nor what they cost is anybody's to know
        return LocalResult(tally.steps, tally.steps * job.stage.batch_size, math.nan, time.monotonic() - started, kept)
    return LocalResult(
        tally.steps, tally.examples, float(tally.total) / tally.examples, time.monotonic() - started, kept
    )


def _ways(
    model: MaskedAutoencoder | Classifier, job: _Job
) -> tuple[MicroBatches, Callable[[Any], tuple[Rows, Tensor]]]:
    """How gradients are made, and how a batch is drawn."""
    if job.protection is None:
        return MicroBatches(model, job.costs_of, job.runtime.device, job.runtime.micro_batch), job.draw
    private = PrivateBatches(model, job.costs_of, job.runtime, job.protection, job.stage.batch_size)
    return private, job.protection.apart(job.draw, job.generators)


def _check(total: Tensor) -> None:
    if not bool(torch.isfinite(total)):
        raise TrainingDiverged("the loss is not finite")
