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

from client.budget import rehearses
from client.dataset import Cache
from client.feedback import Residual
from client.guard import Guarded, Noise, begin, secure
from client.local import Trained, Training, train_locally
from client.mixing import Mixing
from client.moments import Moments
from client.own import OwnTensors
from client.policy import Refused, Work, check_cohort, check_plan, check_size, check_task
from client.protect import protect, shortness
from client.release import description, evaluated, protected, secured, too_few, trained
from client.secure import hold
from client.site import Site
from client.variates import Variates
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.clipping import protected_names
from cxrbase_model.engine import LocalResult, Progress, Runtime
from cxrbase_model.features import build_objective
from cxrbase_model.losses import positive_weights
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.metrics import auroc, evaluate_scores
from cxrbase_model.plan import EvaluateStage, FinetuneStage, PretrainStage
from cxrbase_model.predict import predict, pretrain_loss
from cxrbase_model.rows import finding_chances, labelled, labelled_share, steps_of
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import State, load_state, subtract

_EVALUATION_BATCH = 64


def describe(task: Task, site: Site, cache: Cache) -> Reply:
    """Tell the consortium what this hospital can contribute, in bucketed counts."""
    plan = check_plan(task)
    if cache.spec != plan.data:
        raise Refused(Code.CACHE_MISMATCH)
    return description(site.site, task, cache, site.minimum_cell)


def train(task: Task, site: Site, cache: Cache, runtime: Runtime, noise: Noise = secure) -> Reply:
    """One round of local training from the global weights; the update is what it changed. `noise` serves a plan with `privacy:`."""
    work = _open(task, site, cache)
    if isinstance(work.stage, PretrainStage):
        return _pretrain(task, work, work.stage, site, cache, runtime, noise)
    if isinstance(work.stage, FinetuneStage):
        return _finetune(task, work, work.stage, site, cache, runtime, noise)
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
    check_cohort(work, site, cache, rows, seed=0)
    model = build_classifier(work.plan, work.model_stage)
    load_state(model, work.state)
    scores = predict(model, _pictures(cache, rows), runtime).numpy()
    evaluation = evaluate_scores(
        scores, cache.labels[rows], cache.patients[rows], cache.spec.findings,
        seed=derive_seed(work.plan.seed, "bootstrap", site.site), minimum_cell=site.minimum_cell,
    )  # fmt: skip
    return evaluated(site.site, task, evaluation, examples=len(rows), seconds=time.monotonic() - started)


def _open(task: Task, site: Site, cache: Cache) -> Work:
    work = check_task(task, site.policy.parameters, site.private)
    check_size(work, site)
    if cache.spec != work.plan.data:
        raise Refused(Code.CACHE_MISMATCH)
    return replace(work, state=OwnTensors(site.private, task, work).overlay())


def _pretrain(
    task: Task, work: Work, stage: PretrainStage, site: Site, cache: Cache, runtime: Runtime, noise: Noise
) -> Reply:
    rows = cache.rows("train")
    if len(rows) == 0:
        raise Refused(Code.NO_PICTURES)
    seed = derive_seed(work.plan.seed, "train", task.round, site.site)
    check_cohort(work, site, cache, rows, seed)
    model = build_objective(work.plan, stage)
    _load(model, work)
    guarded = _begin(noise, work, site, task, stage, cache, rows, runtime)
    metrics: dict[str, float] = {}
    if guarded is None:
        metrics = {"validation_loss": _validation_loss(model, stage, site, cache, work, runtime)}
    return _train(task, work, stage, site, cache, runtime, rows, model, guarded, metrics)


def _finetune(
    task: Task, work: Work, stage: FinetuneStage, site: Site, cache: Cache, runtime: Runtime, noise: Noise
) -> Reply:
    share_seed = derive_seed(work.plan.seed, "label-share", site.site)
    rows = labelled_share(cache, cache.rows("train"), stage.label_fraction, share_seed)
    if len(rows) == 0:
        raise Refused(Code.NO_LABELS)
    seed = derive_seed(work.plan.seed, "train", task.round, site.site)
    check_cohort(work, site, cache, rows, seed)
    model = build_classifier(work.plan, stage)
    _load(model, work)
    guarded = _begin(noise, work, site, task, stage, cache, rows, runtime)
    metrics: dict[str, float] = {}
    if guarded is None:
        metrics = {"validation_auroc": _validation_auroc(model, site, cache, runtime)}
        labels = cache.labels[rows]
        weights = positive_weights(
            labels, stage.positive_weight, None if stage.balance == "none" else finding_chances(labels)
        )
    else:
        weights = torch.ones(len(cache.spec.findings))
    return _train(task, work, stage, site, cache, runtime, rows, model, guarded, metrics, weights)


def _train(
    task: Task, work: Work, stage: PretrainStage | FinetuneStage, site: Site, cache: Cache, runtime: Runtime,
    rows: NDArray[np.int64], model: MaskedAutoencoder | Classifier, guarded: Guarded | None, metrics: dict[str, float],
    weights: Tensor | None = None,
) -> Reply:  # fmt: skip
    """The training itself, with what the hospital keeps from round to round before and after it."""
    memory = Moments(site.private, task)
    mixing = Mixing(site.private, task, work.plan.aggregation.mixing if isinstance(stage, PretrainStage) else 0.0)
    variates = Variates(site.private, task, work.control)
    training = Training(
        work.plan, stage, work.state, mixing.begin(work.state), site.cache_folder, rows,
        _progress(stage, task, len(rows), guarded), derive_seed(work.plan.seed, "train", task.round, site.site), runtime,
        moments=memory.before() if stage.optimizer.state == "keep" else None,
        correction=variates.correction(model, work.plan.aggregation), checkpoint=_interrupted(memory, work),
        positive_weights=weights,
    )  # fmt: skip
    done = train_locally(training, model, cache, site.compute, guarded)
    if training.correction is not None:
        variates.learned(done.path)
    memory.keep(done.result.moments)
    mixing.end(done.state)
    return _reply(task, site, work, model, done, metrics, variates)


def _begin(
    noise: Noise, work: Work, site: Site, task: Task, stage: PretrainStage | FinetuneStage, cache: Cache,
    rows: NDArray[np.int64], runtime: Runtime,
) -> Guarded | None:  # fmt: skip
    """The training's protection, its cost booked; None where the plan promises nothing."""
    if work.plan.privacy is None:
        return None
    return begin(noise, work.plan.privacy, site, task, stage, cache, rows, runtime)


def _interrupted(memory: Moments, work: Work) -> LocalCheckpoint | None:
    """Where a round that is interrupted leaves a checkpoint; under SCAFFOLD it begins again, since the gradients' path would be lost.

    A rehearsal has none: the one file may be of a real round, which has spent its privacy already and goes on from there.
    """
    return None if work.plan.aggregation.scaffold or rehearses() else memory.interrupted


def _load(model: MaskedAutoencoder | Classifier, work: Work) -> None:
    try:
        load_state(model, work.state)
    except ValueError:
        raise Refused(Code.STATE_INVALID) from None


def _progress(
    stage: PretrainStage | FinetuneStage, task: Task, examples: int, guarded: Guarded | None = None
) -> Progress:
    steps = steps_of(examples, stage.batch_size, stage.local_epochs) if guarded is None else guarded.mechanism.steps
    return Progress(first_step=(task.stage_round - 1) * steps, total_steps=stage.rounds * steps)


def _reply(
    task: Task, site: Site, work: Work, model: MaskedAutoencoder | Classifier, done: Trained,
    metrics: dict[str, float], variates: Variates,
) -> Reply:  # fmt: skip
    result = done.result
    update = OwnTensors(site.private, task, work).split(done.state, subtract(done.state, work.state))
    names = protected_names(model, work.plan.aggregation)
    short = shortness(update, work.plan, task, names)
    update = protect(update, work.plan, task, names)
    if work.plan.aggregation.secure is not None:
        return _secured(task, site, work, update, short, result, metrics)
    packed = Residual(site.private, task).encode(update | variates.leaving(), work.plan.transport.up)
    if work.plan.privacy is not None:
        return protected(site.site, task, packed, examples=result.examples, steps=result.steps)
    return trained(
        site.site, task, packed, examples=result.examples, steps=result.steps, loss=result.loss,
        seconds=result.seconds, metrics=metrics, control_round=variates.going_on_from,
    )  # fmt: skip


def _secured(
    task: Task, site: Site, work: Work, update: State, short: float, result: LocalResult, metrics: dict[str, float]
) -> Reply:  # fmt: skip
    """The answer to a training whose update leaves masked. Under a plan's `privacy:` the loss is not even in the sum."""
    measured = work.plan.privacy is None
    letter = hold(
        task, site, work.plan, update, examples=result.examples, loss=result.loss if measured else 0.0, short=short
    )
    return secured(site.site, task, letter, seconds=result.seconds if measured else 0.0, metrics=metrics)


def _pictures(cache: Cache, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _EVALUATION_BATCH):
        yield torch.from_numpy(cache.pixels(rows[start : start + _EVALUATION_BATCH]))


def _validation_loss(
    model: MaskedAutoencoder, stage: PretrainStage, site: Site, cache: Cache, work: Work, runtime: Runtime
) -> float:
    """The loss of the weights that arrived on held-out pictures, with the same masks in every round."""
    rows = cache.rows("validation")
    if too_few(cache.patients[rows], site.least_patients):
        return math.nan
    return pretrain_loss(model, _pictures(cache, rows), stage, derive_seed(work.plan.seed, "masks", site.site), runtime)


def _validation_auroc(model: Classifier, site: Site, cache: Cache, runtime: Runtime) -> float:
    """The mean AUROC of the weights that arrived over the findings that have both classes in the validation split."""
    rows = labelled(cache, cache.rows("validation"))
    if too_few(cache.patients[rows], site.least_patients):
        return math.nan
    scores, labels = predict(model, _pictures(cache, rows), runtime).numpy(), cache.labels[rows]
    values = []
    for column in range(labels.shape[1]):
        known = np.isfinite(labels[:, column])
        targets = labels[known, column] >= 0.5
        people = cache.patients[rows][known]
        if not any(too_few(people[targets == side], site.least_patients) for side in (True, False)):
            values.append(auroc(scores[known, column], targets.astype(np.float32)))
    return float(np.mean(values)) if values else math.nan
