"""A round's training in the hospital: in this process, or shared by one process for each GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dataset import Batch, Cache, batches
from client.guard import Guarded
from client.site import Compute
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import Classifier
from cxrbase_model.dpsgd import Protection
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.initial import build_model
from cxrbase_model.launch import launch
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage, balance_of
from cxrbase_model.proximal import proximal
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, load_state, state_of
from cxrbase_model.variates import steered

log = logging.getLogger("cxrbase.client")


@dataclass(frozen=True)
class Training:
    """All that a round's training depends on but the pictures, which `rows` of the cache in `folder` are.

    arrived: the global weights, which a proximal term pulls to. begun: the weights to begin with. moments: AdamW's of the round before.
    correction: what SCAFFOLD adds to gradients. positive_weights: [C], of a fine-tuning.
    """

    plan: Plan
    stage: PretrainStage | FinetuneStage
    arrived: State
    begun: State
    folder: Path
    rows: NDArray[np.int64]
    progress: Progress
    seed: int
    runtime: Runtime
    moments: State | None = None
    correction: State | None = None
    checkpoint: LocalCheckpoint | None = None
    positive_weights: Tensor | None = None

    def batches(self, cache: Cache) -> Iterable[Batch]:
        """The batches of a training that promises nothing."""
        stage = self.stage
        return batches(
            cache, self.rows, stage.batch_size, seed=self.seed, epochs=stage.local_epochs, balance=balance_of(stage),
            workers=self.runtime.readers,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What came of a training: the engine's result, the weights, and SCAFFOLD's mean gradient along the path."""

    result: LocalResult
    state: State
    path: State = field(default_factory=dict)


def train_locally(
    training: Training, model: MaskedAutoencoder | Classifier, cache: Cache, compute: Compute, guarded: Guarded | None
) -> Trained:
    """Train the model, which has the weights that arrived, on as many devices as SITE.yaml and the batch allow.

    Under `privacy:` on one: there is one source of noise, which stays in this process. Several processes give the same up to rounding,
    and the same errors.
    """
    if guarded is not None:
        return _train(training, model, guarded.batches(), guarded.protection)
    devices = devices_of(compute, training.runtime.device)[: training.stage.batch_size]
    if len(devices) == 1:
        return _train(training, model, training.batches(cache))
    log.info("%s is trained by %d processes, on %s", training.stage.name, len(devices), ", ".join(map(str, devices)))
    model.to("cpu")
    torch.cuda.empty_cache()  # the memory of the first GPU is for the process that trains there
    return launch(_share, training, devices, compute.threads)


def devices_of(compute: Compute, device: torch.device) -> list[torch.device]:
    """The devices that share a training in this hospital, where its first device is `device`; the same one several times on a CPU.

    SettingsError where SITE.yaml asks for more GPUs than there are.
    """
    if device.type != "cuda":
        return [device] * (compute.devices or 1)
    if ":" in str(device):
        return [device]
    there = torch.cuda.device_count()
    if compute.devices is not None and compute.devices > there:
        raise SettingsError(
            f"compute.devices: expected at most {there}, the GPUs that are there, found {compute.devices}"
        )
    return [torch.device("cuda", index) for index in range(compute.devices or max(1, there))]


def _share(training: Training, device: torch.device) -> Trained:
    """What each of several processes does: the same, each with its share of every batch."""
    model = build_model(training.plan, training.stage)
    load_state(model, training.arrived)
    training = replace(training, runtime=replace(training.runtime, device=device))
    return _train(training, model, training.batches(Cache.open(training.folder)))


def _train(
    training: Training,
    model: MaskedAutoencoder | Classifier,
    stream: Iterable[Batch],
    protection: Protection | None = None,
) -> Trained:
    """Train in this process."""
    with contextlib.ExitStack() as stack:
        path = None
        if training.correction is not None:
            path = stack.enter_context(steered(model, training.correction))
        stack.enter_context(proximal(model, training.plan.aggregation.proximal))
        if training.begun is not training.arrived:  # within the block, for its pull is to the global weights
            load_state(model, training.begun)
        result = _run(training, model, stream, protection)
    return Trained(result, state_of(model), {} if path is None else path.mean())


def _run(
    training: Training,
    model: MaskedAutoencoder | Classifier,
    stream: Iterable[Batch],
    protection: Protection | None,
) -> LocalResult:
    """One call of the engine."""
    stage = training.stage
    rest = (
        training.progress, training.seed, training.runtime, training.moments, training.checkpoint, protection,
    )  # fmt: skip
    if isinstance(stage, FinetuneStage):
        weights = training.positive_weights
        assert weights is not None  # a fine-tuning has them
        return finetune(cast(Classifier, model), stream, stage, weights, *rest)
    return pretrain(cast(MaskedAutoencoder, model), (images for images, _ in stream), stage, *rest)
