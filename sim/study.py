"""What pretraining, labels and recipe are worth on real hospitals: trainings on their pictures pooled, tested hospital by hospital.

Two questions. With few labels, does fine-tuning from a pretrained encoder beat fine-tuning from scratch? And on a hospital that took
part in nothing, does the model tell the disease, or only the hospitals it knows? Patients are split as a federation splits them;
every training is a job of its own whose result stays on disk, so that a study that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dataset import Cache
from client.site import read_site
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.codec import pack, unpack
from cxrbase_model.engine import Progress, Runtime, finetune, pretrain
from cxrbase_model.export import export_encoder
from cxrbase_model.files import write_private
from cxrbase_model.initial import build_model, initial_state
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import Augmentation, FinetuneStage, Plan, PretrainStage, read_plan
from cxrbase_model.predict import embed, feature_statistics, predict
from cxrbase_model.rows import balanced_rows, batch_rows, labelled, labelled_share, steps_of
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError, digest, knob, load_yaml, read
from cxrbase_model.state import load_state, state_of
from sim.config import FolderHospitals
from sim.probe import linear_probe

_PREDICT_BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """One way to train; what it changes of the plan's."""

    name: str = knob(why="names the recipe in tables")
    init: str = knob(
        "mae", choices=("random", "mae"), why="from scratch, or from the pretraining on the same hospitals"
    )
    intensity: str = knob("as-is", choices=("as-is", "equalize"), why="grey values, as data.intensity")
    remove_borders: bool = knob(False, why="cut away black borders, as data.remove_borders")
    balance: str = knob(
        "none", choices=("none", "cells", "within"),
        why="picture by picture; each finding of each hospital equally often; or so, but of hospitals alone that have both, since "
        "the others can only teach what their pictures look like",
    )  # fmt: skip
    augmentation: Augmentation = knob(factory=lambda: Augmentation(crop=0.7), why="augmentation of the fine-tuning")

    @property
    def pictures(self) -> Pictures:
        """The form of the pictures it learns from."""
        return Pictures(self.intensity, self.remove_borders)


@dataclass(frozen=True, order=True)
class Pictures:
    """How pictures were made of the archive's; a folder of its own for each."""

    intensity: str
    remove_borders: bool

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.intensity}-cut" if self.remove_borders else self.intensity


@dataclass(frozen=True)
class StudyConfig:
    """A study; `plan` is relative to the file it is written in, its first stage pretrains and the others fine-tune."""

    plan: Path = knob(why="the plan whose stages are trained")
    hospitals: FolderHospitals = knob(factory=FolderHospitals, why="how the folders' labels are read")
    seeds: tuple[int, ...] = knob((1, 2, 3), low=0, why="every training once for each")
    labels: tuple[float, ...] = knob((0.01, 0.1, 1.0), low=0.0, high=1.0, why="shares of the labelled patients")
    unseen: tuple[str, ...] = knob((), why="hospitals left out of everything, each in turn, and tested on")
    steps: int = knob(200, unit="steps", low=1, high=1_000_000, why="steps of every fine-tuning, whatever its labels")
    recipe: str = knob(why="the recipe of the trainings with fewer labels")
    recipes: tuple[Recipe, ...] = knob(why="recipes that are compared on unseen hospitals")

    def __post_init__(self) -> None:
        if self.recipe not in (names := [each.name for each in self.recipes]):
            raise SettingsError(f"recipe: expected one of {', '.join(names)}; found {self.recipe!r}")


@dataclass(frozen=True)
class Job:
    """One fine-tuning and its test; `without` is the hospital that is left out, "" for none."""

    stage: str
    recipe: Recipe
    labels: float
    without: str
    seed: int

    @property
    def name(self) -> str:
        """The file's name of the job's result."""
        without = f"-without-{self.without}" if self.without else ""
        return (
            f"{self.stage}-{self.recipe.name.replace(' ', '-')}-{self.recipe.init}-{self.labels:g}{without}-{self.seed}"
        )


def read_study(path: Path) -> tuple[StudyConfig, Plan]:
    """Read a study and its plan; SettingsError names the file and the dotted key."""
    try:
        config = read(StudyConfig, load_yaml(path))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    plan = read_plan(path.parent / config.plan)
    if not isinstance(plan.stages[0], PretrainStage) or len(plan.stages) < 2:
        raise SettingsError(f"{path}: plan: expected a plan that pretrains and then fine-tunes, found {plan.name}")
    return config, plan


def jobs(config: StudyConfig, plan: Plan) -> Iterator[Job]:
    """All jobs, seed by seed, so that an interrupted study has whole seeds."""
    chosen = next(each for each in config.recipes if each.name == config.recipe)
    heads = [stage.name for stage in plan.stages if isinstance(stage, FinetuneStage)]
    for seed in config.seeds:
        for without in config.unseen:
            for recipe in config.recipes:
                yield Job(heads[0], recipe, 1.0, without, seed)
        for share in config.labels:
            for head in heads:
                for init in ("random", "mae"):
                    yield Job(head, dataclasses.replace(chosen, init=init), share, "", seed)


def pretraining_name(pictures: Pictures, without: str, seed: int) -> str:
    """The file's name of a pretraining, without its ending."""
    return f"{pictures.name}-{without or 'all'}-{seed}"


class Pool:
    """The pictures of several hospitals as one table.

    pictures: uint8 [N, S, S]. labels: float32 [N, C], NaN where unknown. patients: int64 [N], no two hospitals' alike. hospitals:
    int64 [N], an index into `names`. splits: uint8 [N], an index into train, validation, test. groups: as in `Cache`, uint8 [N] each.
    """

    def __init__(self, sites: list[Path]) -> None:
        loaded = [(site.site, Cache.open(site.cache_folder)) for site in map(read_site, sites)]
        self.names = [name for name, _ in loaded]
        self.pictures = np.concatenate([cache.pixels(np.arange(len(cache))) for _, cache in loaded])
        self.labels = np.concatenate([cache.labels for _, cache in loaded])
        self.splits = np.concatenate([cache.splits for _, cache in loaded])
        self.groups = {
            name: np.concatenate([cache.groups[name] for _, cache in loaded]) for name in ("sex", "age_band")
        }
        self.hospitals = np.repeat(np.arange(len(loaded)), [len(cache) for _, cache in loaded])
        self.patients = np.concatenate([cache.patients for _, cache in loaded]) + (self.hospitals << 32)

    def rows(self, split: int, without: str = "") -> NDArray[np.int64]:
        """Rows of a split, but those of one hospital."""
        chosen = self.splits == split
        if without:
            chosen &= self.hospitals != self.names.index(without)
        return np.flatnonzero(chosen)

    def of(self, hospital: str) -> NDArray[np.int64]:
        """All rows of one hospital."""
        return np.flatnonzero(self.hospitals == self.names.index(hospital))

    def batches(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """The pictures of some rows, uint8, a few at a time."""
        for part in np.array_split(rows, max(1, -(-len(rows) // _PREDICT_BATCH))):
            yield torch.from_numpy(self.pictures[part])


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
        return {pictures: Pool(sites) for pictures, sites in self.sites.items()}

    def do(self, job: Job) -> Path:
        """Do a job, if it has not been done, and give the file of its results: `rows` [N], probabilities `scores` [N, C], and
        `hospital`, how well a linear probe tells the hospital from the embedding, balanced accuracy in [0, 1].
        """
        file = self.out / "jobs" / f"{job.name}.npz"
        if not file.exists():
            model = self.trained(job)
            pool = self.pools[job.recipe.pictures]
            tested = pool.of(job.without) if job.without else np.concatenate([pool.rows(1), pool.rows(2)])
            tested = labelled(pool, tested)
            scores = predict(model, pool.batches(tested), self.runtime).numpy()
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.savez(stream, rows=tested, scores=scores, hospital=self._told(model, pool))
            part.rename(file)
        return file

    def trained(self, job: Job) -> Classifier:
        """The classifier of a job, trained anew."""
        pool, plan = self.pools[job.recipe.pictures], dataclasses.replace(self.plan, seed=job.seed)
        stage = self._stage(plan, job)
        plan = dataclasses.replace(plan, stages=(plan.stages[0], stage))
        if job.recipe.init == "mae":
            encoder = unpack(self.pretrained(job.recipe.pictures, job.without, job.seed).read_bytes())
        model = build_classifier(plan, stage)
        load_state(model, initial_state(plan, stage, lambda _: encoder))
        seed = derive_seed(job.seed, "study", stage.name)
        batches = (
            (torch.from_numpy(pool.pictures[each]), torch.from_numpy(pool.labels[each]))
            for each in self._batch_rows(job, pool, stage.batch_size, seed)
        )
        weights, progress = torch.ones(len(plan.data.findings)), Progress(0, self.config.steps)
        finetune(model, batches, stage, weights, progress, seed, self.runtime)
        return model

    def _batch_rows(self, job: Job, pool: Pool, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        steps = self.config.steps
        rows = labelled_share(pool, pool.rows(0, job.without), job.labels, derive_seed(job.seed, "label-share"))
        cells = pool.hospitals[rows] * 2 + (pool.labels[rows, 0] >= 0.5)
        if job.recipe.balance == "within":
            both = np.isin(cells ^ 1, cells)  # the hospital's other finding is there, too
            if both.any():  # of very few labels, no hospital may have both
                rows, cells = rows[both], cells[both]
        if len(rows) == 0:
            raise SettingsError(
                f"{job.name}: expected labelled pictures to learn from, found none; look at the excluded ones"
            )
        if job.recipe.balance == "none":
            order = batch_rows(rows, size, seed, (steps - 0.5) * size / len(rows))
        else:
            order = balanced_rows(rows, cells, size, seed, steps)
        return (np.resize(each, size) for each in order)

    def _told(self, model: Classifier, pool: Pool) -> float:
        """How well a linear probe on training pictures tells the hospitals of the others."""
        train, test = pool.rows(0), np.concatenate([pool.rows(1), pool.rows(2)])
        known, new = (embed(model, pool.batches(rows), self.runtime).numpy() for rows in (train, test))
        return linear_probe(known, pool.hospitals[train], new, pool.hospitals[test])

    def _stage(self, plan: Plan, job: Job) -> FinetuneStage:
        stage = plan.stage(job.stage)
        assert isinstance(stage, FinetuneStage)  # jobs() names only those
        init = f"stage:{plan.stages[0].name}" if job.recipe.init == "mae" else "random"
        stage = dataclasses.replace(stage, init=init, augmentation=job.recipe.augmentation)
        if init == "random":  # there is nothing to probe and nothing to keep in random weights
            stage = dataclasses.replace(
                stage, trains="all" if stage.trains == "head" else stage.trains, layer_decay=1.0
            )
        return stage

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
            rows, draw = pool.rows(0, without), derive_seed(seed, "study", "pretrain")
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


def fingerprint(config: StudyConfig, plan: Plan, data: Path) -> str:
    """What a folder of results belongs to."""
    return digest(
        {
            "data": str(data.resolve()),
            "study": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            "plan": plan.digest,
        }
    )
