"""Doing the jobs of a study: a pretraining where one is wanted, a fine-tuning, and what its model says of held-out pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.codec import pack, unpack
from cxrbase_model.engine import Progress, Runtime, finetune, pretrain
from cxrbase_model.export import export_encoder
from cxrbase_model.files import write_private
from cxrbase_model.initial import build_model, initial_state
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.predict import feature_statistics, predict
from cxrbase_model.rows import balanced_rows, batch_rows, labelled, steps_of
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import load_state, state_of
from sim.choice import Batch, Chooser
from sim.erasure import embeddings, refit
from sim.pool import TEST, TRAIN, VALIDATION, Pool, stratified_share
from sim.probe import linear_probe
from sim.reference import build_reference
from sim.study import Job, Pictures, StudyConfig, pretraining_name


@dataclass(frozen=True)
class Bench:
    """Where jobs are done: plan, pictures by their form, and the folder of results."""

    config: StudyConfig
    plan: Plan
    sites: dict[Pictures, list[Path]]
    out: Path
    runtime: Runtime

    @cached_property
    def pools(self) -> dict[Pictures, Pool]:
        """The pooled pictures of each form."""
        return {pictures: Pool(sites, self.config.largest_patient) for pictures, sites in self.sites.items()}

    def do(self, job: Job) -> Path:
        """Do a job, if it has not been done, and give the file of its results: `rows` [N], probabilities `scores` [N],
        `hospital`, how well a linear probe tells the hospital from the embedding where one was left out, balanced accuracy in [0, 1], and
        `patients`, how many were learned from.
        """
        file = self.out / "jobs" / f"{job.name}.npz"
        if not file.exists():
            model = self._refitted(job, self.trained(job))
            pool = self.pools[job.recipe.pictures]
            tested = labelled(pool, pool.of(job.without) if job.without else pool.rows(TEST))
            scores = predict(model, pool.batches(tested), self.runtime)[:, 0].numpy()
            patients = len(np.unique(pool.patients[self._rows(job, pool)]))
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            told = self._told(model, pool) if job.without else np.nan
            with part.open("wb") as stream:
                np.savez(stream, rows=tested, scores=scores, hospital=told, patients=patients)
            part.rename(file)
        return file

    def trained(self, job: Job) -> Classifier:
        """The classifier of a job, trained anew."""
        pool = self.pools[job.recipe.pictures]
        model, stage = self._start(job, pool)
        seed = derive_seed(job.seed, "study", stage.name)
        batches: Iterator[Batch] = (
            (torch.from_numpy(pool.pictures[each]), torch.from_numpy(pool.labels[each]))
            for each in self._batch_rows(job, pool, stage.batch_size, seed)
        )
        weights, progress = torch.ones(len(self.plan.data.findings)), Progress(0, job.steps)
        if job.looks == 1:
            finetune(model, batches, stage, weights, progress, seed, self.runtime)
            return model
        validation = labelled(pool, pool.rows(VALIDATION, job.without))
        chooser = Chooser(model, pool, validation, -(-job.steps // job.looks), self.runtime)
        finetune(model, chooser.watch(batches), stage, weights, progress, seed, self.runtime)
        chooser.restore()
        return model

    def _start(self, job: Job, pool: Pool) -> tuple[Classifier, FinetuneStage]:
        """The classifier before its training, and the stage that trains it."""
        plan = dataclasses.replace(self.plan, seed=job.seed)
        if job.stage == self.config.reference.network:
            findings = len(plan.data.findings)
            return build_reference(job.stage, findings, job.seed), self._reference_stage(job)
        stage = self.stage(plan, job)
        plan = dataclasses.replace(plan, stages=(plan.stages[0], stage))
        if job.recipe.init == "mae":
            pretraining_seed = self.config.pretraining_seed(job.seed)
            encoder = unpack(self.pretrained(job.recipe.pictures, job.without, pretraining_seed).read_bytes())
        model = build_classifier(plan, stage)
        load_state(model, initial_state(plan, stage, lambda _: encoder))
        return model, stage

    def _rows(self, job: Job, pool: Pool) -> NDArray[np.int64]:
        """The labelled rows that a job learns from."""
        rows = stratified_share(pool, pool.rows(TRAIN, job.without), job.labels, derive_seed(job.seed, "label-share"))
        if job.recipe.balance == "within":
            cells = pool.cells(rows)
            both = np.isin(cells ^ 1, cells)  # the hospital's other finding is there, too
            rows = rows[both] if both.any() else rows
        if len(rows) == 0:
            raise SettingsError(
                f"{job.name}: expected labelled pictures to learn from, found none; look at the excluded ones"
            )
        return rows

    def _batch_rows(self, job: Job, pool: Pool, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        rows = self._rows(job, pool)
        if job.recipe.balance == "none":
            order = batch_rows(rows, size, seed, (job.steps - 0.5) * size / len(rows))
        else:
            order = balanced_rows(rows, pool.cells(rows), size, seed, job.steps)
        return (np.resize(each, size) for each in order)

    def _refitted(self, job: Job, model: Classifier) -> Classifier:
        """The model with the head that the recipe wants."""
        if job.recipe.head == "trained":
            return model
        pool = self.pools[job.recipe.pictures]
        rows = pool.rows(TRAIN, job.without)
        known, present = embeddings(model, pool.batches(rows), self.runtime), pool.labels[rows, 0].copy()
        present[~np.isin(rows, self._rows(job, pool))] = np.nan
        return refit(model, known, pool.hospitals[rows], present, erase=job.recipe.head == "erased")

    def _told(self, model: Classifier, pool: Pool) -> float:
        """How well a linear probe on training pictures tells the hospitals of the others."""
        train, test = pool.rows(TRAIN), np.concatenate([pool.rows(VALIDATION), pool.rows(TEST)])
        known, new = (embeddings(model, pool.batches(rows), self.runtime) for rows in (train, test))
        return linear_probe(known, pool.hospitals[train], new, pool.hospitals[test])

    def stage(self, plan: Plan, job: Job) -> FinetuneStage:
        """The plan's stage as the job's start and recipe have it."""
        stage = plan.stage(job.stage)
        assert isinstance(stage, FinetuneStage)  # jobs() names only those
        init = f"stage:{plan.stages[0].name}" if job.recipe.init == "mae" else "random"
        stage = dataclasses.replace(stage, init=init, augmentation=job.recipe.augmentation)
        if init == "random" and stage.trains != "head":  # there is nothing to keep in random weights
            rate = stage.optimizer.lr if self.config.scratch_lr is None else self.config.scratch_lr
            optimizer = dataclasses.replace(stage.optimizer, lr=rate)
            stage = dataclasses.replace(stage, layer_decay=1.0, optimizer=optimizer)
        return stage

    def _reference_stage(self, job: Job) -> FinetuneStage:
        first = next(each for each in self.plan.stages if isinstance(each, FinetuneStage))
        reference = self.config.reference
        optimizer = dataclasses.replace(first.optimizer, lr=reference.lr, weight_decay=reference.weight_decay)
        return dataclasses.replace(
            first, name=reference.network, trains="all", optimizer=optimizer, augmentation=job.recipe.augmentation
        )

    def pretrained(self, pictures: Pictures, without: str, seed: int) -> Path:
        """The file of the autoencoder pretrained on the training pictures of all hospitals but one; trained where it is missing.

        Its encoder is also exported beside it, to the folder of the file's name, for other plans to begin with; with the statistics
        of its features on these pictures, for `standardise`.
        """
        file = self.out / "pretrained" / f"{pretraining_name(pictures, without, seed)}.safetensors"
        if not file.exists():
            plan, pool = dataclasses.replace(self.plan, seed=seed), self.pools[pictures]
            stage = plan.stages[0]
            assert isinstance(stage, PretrainStage)  # read_study has seen to it
            model = build_model(plan, stage)
            assert isinstance(model, MaskedAutoencoder)
            rows, draw = pool.rows(TRAIN, without), derive_seed(seed, "study", "pretrain")
            if len(rows) == 0:
                raise SettingsError(
                    f"{file.stem}: expected pictures to pretrain on, found none; look at the excluded ones"
                )
            progress = Progress(0, steps_of(len(rows), stage.batch_size, stage.local_epochs))
            order = batch_rows(rows, stage.batch_size, draw, stage.local_epochs)
            pretrain(
                model, (torch.from_numpy(pool.pictures[each]) for each in order), stage, progress, draw, self.runtime
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            statistics = feature_statistics(model, pool.batches(rows), self.runtime)
            export_encoder(state_of(model), plan, file.with_suffix(""), statistics)
            write_private(file, pack(state_of(model)))
        return file
