"""The work behind each kind of task: cache rows to batches, the engine, and an update or an evaluation out of the door."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dataset import Cache, batches
from client.feedback import Residual
from client.mixing import Mixing
from client.moments import Moments
from client.own import OwnTensors
from client.policy import Refused, Work, check_plan, check_size, check_task
from client.protect import protect, shortness
from client.release import description, evaluated, secured, trained
from client.secure import begin
from client.site import Site
from client.variates import Variates
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.clipping import protected_names
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.features import build_objective
from cxrbase_model.losses import positive_weights
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.metrics import auroc, evaluate_scores
from cxrbase_model.plan import EvaluateStage, FinetuneStage, PretrainStage
from cxrbase_model.predict import predict, pretrain_loss
from cxrbase_model.proximal import proximal
from cxrbase_model.rows import labelled, labelled_share, steps_of
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import load_state, state_of, subtract

_EVALUATION_BATCH = 64


def describe(task: Task, site: Site, cache: Cache) -> Reply:
    """Tell the consortium what this hospital can contribute, in bucketed counts."""
    plan = check_plan(task)
    if cache.spec != plan.data:
        raise Refused(Code.CACHE_MISMATCH)
    return description(site.site, task, cache, site.minimum_cell)


def train(task: Task, site: Site, cache: Cache, runtime: Runtime) -> Reply:
    """One round of local training from the global weights; the update is what it changed."""
    work = _open(task, site, cache)
    if isinstance(work.stage, PretrainStage):
        return _pretrain(task, work, work.stage, site, cache, runtime)
    if isinstance(work.stage, FinetuneStage):
        return _finetune(task, work, work.stage, site, cache, runtime)
    raise Refused(Code.TASK_UNKNOWN)


def evaluate(task: Task, site: Site, cache: Cache, runtime: Runtime) -> Reply:
    """AUROC and its relatives of the global classifier on this hospital's held-out patients."""
    started = time.monotonic()
    work = _open(task, site, cache)
    if not isinstance(work.stage, EvaluateStage) or not isinstance(work.model_stage, FinetuneStage):
        raise Refused(Code.TASK_UNKNOWN)
    rows = labelled(cache, cache.rows(work.stage.split))
    if len(rows) == 0:
        raise Refused(Code.NO_LABELS)
    model = build_classifier(work.plan, work.model_stage)
    load_state(model, work.state)
    scores = predict(model, _pictures(cache, rows), runtime).numpy()
    evaluation = evaluate_scores(
        scores, cache.labels[rows], cache.patients[rows], cache.spec.findings,
        seed=derive_seed(work.plan.seed, "bootstrap", site.site), minimum_cell=site.minimum_cell,
    )  # fmt: skip
    return evaluated(site.site, task, evaluation, examples=len(rows), seconds=time.monotonic() - started)


def _open(task: Task, site: Site, cache: Cache) -> Work:
    work = check_task(task, site.policy.parameters)
    check_size(work, site)
    if cache.spec != work.plan.data:
        raise Refused(Code.CACHE_MISMATCH)
    return replace(work, state=OwnTensors(site.private, task, work).overlay())


def _pretrain(task: Task, work: Work, stage: PretrainStage, site: Site, cache: Cache, runtime: Runtime) -> Reply:
    rows = cache.rows("train")
    if len(rows) == 0:
        raise Refused(Code.NO_PICTURES)
    model = build_objective(work.plan, stage)
    _load(model, work)
    seed = derive_seed(work.plan.seed, "train", task.round, site.site)
    held_out = _validation_loss(model, stage, site, cache, work, runtime)
    stream = (images for images, _ in batches(cache, rows, stage.batch_size, seed=seed, epochs=stage.local_epochs))
    memory = Moments(site.private, task)
    moments = memory.before() if stage.optimizer.state == "keep" else None
    mixing = Mixing(site.private, task, work.plan.aggregation.mixing)
    variates = Variates(site.private, task, work.control)
    with variates.steering(model, work.plan.aggregation), proximal(model, work.plan.aggregation.proximal):
        if (
            begun := mixing.begin(work.state)
        ) is not work.state:  # within the block, for its pull is to the global weights
            load_state(model, begun)
        result = pretrain(
            model, stream, stage, _progress(stage, task, len(rows)), seed, runtime, moments, _interrupted(memory, work)
        )
    memory.keep(result.moments)
    mixing.end(state_of(model))
    return _reply(task, site, work, model, result, {"validation_loss": held_out}, variates)


def _finetune(task: Task, work: Work, stage: FinetuneStage, site: Site, cache: Cache, runtime: Runtime) -> Reply:
    share_seed = derive_seed(work.plan.seed, "label-share", site.site)
    rows = labelled_share(cache, cache.rows("train"), stage.label_fraction, share_seed)
    if len(rows) == 0:
        raise Refused(Code.NO_LABELS)
    model = build_classifier(work.plan, stage)
    _load(model, work)
    seed = derive_seed(work.plan.seed, "train", task.round, site.site)
    held_out = _validation_auroc(model, cache, runtime)
    stream = batches(cache, rows, stage.batch_size, seed=seed, epochs=stage.local_epochs)
    weights = positive_weights(cache.labels[rows], stage.positive_weight)
    memory = Moments(site.private, task)
    moments = memory.before() if stage.optimizer.state == "keep" else None
    variates = Variates(site.private, task, work.control)
    with variates.steering(model, work.plan.aggregation), proximal(model, work.plan.aggregation.proximal):
        result = finetune(
            model,
            stream,
            stage,
            weights,
            _progress(stage, task, len(rows)),
            seed,
            runtime,
            moments,
            _interrupted(memory, work),
        )
    memory.keep(result.moments)
    return _reply(task, site, work, model, result, {"validation_auroc": held_out}, variates)


def _interrupted(memory: Moments, work: Work) -> LocalCheckpoint | None:
    """Where a round that is interrupted leaves a checkpoint; under SCAFFOLD it begins again, since the gradients' path would be lost."""
    return None if work.plan.aggregation.scaffold else memory.interrupted


def _load(model: MaskedAutoencoder | Classifier, work: Work) -> None:
    try:
        load_state(model, work.state)
    except ValueError:
        raise Refused(Code.STATE_INVALID) from None


def _progress(stage: PretrainStage | FinetuneStage, task: Task, examples: int) -> Progress:
    steps = steps_of(examples, stage.batch_size, stage.local_epochs)
    return Progress(first_step=(task.stage_round - 1) * steps, total_steps=stage.rounds * steps)


def _reply(
    task: Task, site: Site, work: Work, model: MaskedAutoencoder | Classifier, result: LocalResult,
    metrics: dict[str, float], variates: Variates,
) -> Reply:  # fmt: skip
    after = state_of(model)
    update = OwnTensors(site.private, task, work).split(after, subtract(after, work.state))
    names = protected_names(model, work.plan.aggregation)
    short = shortness(update, work.plan, task, names)
    update = protect(update, work.plan, task, names)
    if work.plan.aggregation.secure is not None:
        letter = begin(task, site, work.plan, update, examples=result.examples, loss=result.loss, short=short)
        return secured(site.site, task, letter, seconds=result.seconds, metrics=metrics)
    packed = Residual(site.private, task).encode(update | variates.leaving(), work.plan.transport.up)
    return trained(
        site.site, task, packed, examples=result.examples, steps=result.steps, loss=result.loss,
        seconds=result.seconds, metrics=metrics, control_round=variates.going_on_from,
    )  # fmt: skip


def _pictures(cache: Cache, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _EVALUATION_BATCH):
        yield torch.from_numpy(cache.pixels(rows[start : start + _EVALUATION_BATCH]))


def _validation_loss(
    model: MaskedAutoencoder, stage: PretrainStage, site: Site, cache: Cache, work: Work, runtime: Runtime
) -> float:
    """The loss of the weights that arrived on held-out pictures, with the same masks in every round."""
    rows = cache.rows("validation")
    if len(rows) == 0:
        return math.nan
    return pretrain_loss(model, _pictures(cache, rows), stage, derive_seed(work.plan.seed, "masks", site.site), runtime)


def _validation_auroc(model: Classifier, cache: Cache, runtime: Runtime) -> float:
    """The mean AUROC of the weights that arrived over the findings that have both classes in the validation split."""
    rows = labelled(cache, cache.rows("validation"))
    if len(rows) == 0:
        return math.nan
    scores, labels = predict(model, _pictures(cache, rows), runtime).numpy(), cache.labels[rows]
    values = []
    for column in range(labels.shape[1]):
        known = np.isfinite(labels[:, column])
        targets = labels[known, column] >= 0.5
        if targets.any() and not targets.all():
            values.append(auroc(scores[known, column], targets.astype(np.float32)))
    return float(np.mean(values)) if values else math.nan
