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
from pathlib import Path

from cxrbase_model.plan import Augmentation, FinetuneStage, Plan, PretrainStage, read_plan
from cxrbase_model.settings import SettingsError, digest, knob, load_yaml, read
from sim.config import FolderHospitals


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
    head: str = knob(
        "trained", choices=("trained", "refit", "erased"),
        why="the trained head; a linear one fitted anew; or so, on features without what tells the known hospitals apart (sim.erasure)",
    )  # fmt: skip

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
class Share:
    """Fine-tunings with a share of the labels, each way of training once a draw of patients."""

    labels: float = knob(
        low=0.0, high=1.0, why="share of the patients of each hospital with, and without, the finding; at least one of each"
    )  # fmt: skip
    draws: int = knob(3, low=1, high=1000, why="draws of patients; both starts learn from the same ones")
    steps: int = knob(200, unit="steps", low=1, high=1_000_000, why="steps of each fine-tuning")
    looks: int = knob(
        1, low=1, high=1000,
        why="how often validation patients are looked at, at even distances; the best look's weights are kept, and with 1 the last ones",
    )  # fmt: skip


@dataclass(frozen=True)
class StudyConfig:
    """A study; `plan` is relative to the file it is written in, its first stage pretrains and the others fine-tune."""

    plan: Path = knob(why="the plan whose stages are trained")
    hospitals: FolderHospitals = knob(factory=FolderHospitals, why="how the folders' labels are read")
    largest_patient: int | None = knob(
        None, unit="pictures", low=1,
        why="an identifier of more pictures than this is no person's, and each of its pictures is taken for a patient; none trusts all",
    )  # fmt: skip
    seeds: tuple[int, ...] = knob((1, 2, 3), low=0, why="every training on unseen hospitals once for each")
    pretrained_seed: int | None = knob(
        None, low=0, why="seed of the one pretraining that all trainings share; none pretrains for each seed"
    )
    unseen: tuple[str, ...] = knob((), why="hospitals left out of everything, each in turn, and tested on")
    steps: int = knob(200, unit="steps", low=1, high=1_000_000, why="steps of every fine-tuning without a hospital")
    labels: tuple[Share, ...] = knob((), why="shares of the labels that are learned from, no hospital left out")
    scratch_lr: float | None = knob(
        None, low=0.0, high=1.0, why="base learning rate from random weights; none takes the stage's"
    )
    recipe: str = knob(why="the recipe of the trainings with shares of the labels")
    recipes: tuple[Recipe, ...] = knob(why="recipes that are compared on unseen hospitals")

    def __post_init__(self) -> None:
        if self.recipe not in (names := [each.name for each in self.recipes]):
            raise SettingsError(f"recipe: expected one of {', '.join(names)}; found {self.recipe!r}")

    def pretraining_seed(self, seed: int) -> int:
        """The seed of the pretraining that a training of this seed begins with."""
        return seed if self.pretrained_seed is None else self.pretrained_seed


@dataclass(frozen=True)
class Job:
    """One fine-tuning and its test; `without` is the hospital that is left out, "" for none, `seed` also that of the draw of patients."""

    stage: str
    recipe: Recipe
    labels: float
    steps: int
    looks: int
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
    stages = [stage for stage in plan.stages if isinstance(stage, FinetuneStage)]
    for seed in config.seeds:
        for without in config.unseen:
            for recipe in config.recipes:
                yield Job(stages[0].name, recipe, 1.0, config.steps, 1, without, seed)
    chosen = next(each for each in config.recipes if each.name == config.recipe)
    for share in config.labels:
        for seed in range(1, share.draws + 1):
            for stage in stages:
                for init in starts(stage):
                    recipe = dataclasses.replace(chosen, init=init)
                    yield Job(stage.name, recipe, share.labels, share.steps, share.looks, "", seed)


def starts(stage: FinetuneStage) -> tuple[str, ...]:
    """What a stage is started from: in random weights there is nothing to probe, and probes are compared with full training from scratch."""
    return ("mae",) if stage.trains == "head" else ("random", "mae")


def pretraining_name(pictures: Pictures, without: str, seed: int) -> str:
    """The file's name of a pretraining, without its ending."""
    return f"{pictures.name}-{without or 'all'}-{seed}"


def fingerprint(config: StudyConfig, plan: Plan, data: Path) -> str:
    """What a folder of results belongs to."""
    return digest(
        {
            "data": str(data.resolve()),
            "study": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            "plan": plan.digest,
        }
    )
