"""What an audit measures: on which pictures, with which plan, how many canaries, which views of a server, how hard an attacker tries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from cxrbase_model.plan import Augmentation, EvaluateStage, FinetuneStage, Plan, read_plan
from cxrbase_model.privacy import Privacy
from cxrbase_model.settings import SettingsError, knob, load_yaml, read
from sim.audit.inversion import Effort
from sim.audit.subject import Finetuning, Pretraining, Subject
from sim.config import FolderHospitals

PLAIN = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0)  # what is attacked is what was taken


@dataclass(frozen=True)
class PhantomPictures:
    """Made-up radiographs, drawn for the audit."""

    kind: str = knob("phantom", choices=("phantom",), why="names the type of pictures")
    seed: int = knob(0, low=0, high=2**31 - 1, why="seed of the phantoms; the same seed gives the same pictures")


@dataclass(frozen=True)
class Canaries:
    """The one-run test: canaries are in a training by the toss of a coin, and an attacker says which were."""

    count: int = knob(
        128, unit="canaries", low=8, high=1_000_000, why="pictures with wrong labels, half of them trained on"
    )
    others: int = knob(32, unit="pictures", low=0, high=1_000_000, why="pictures that are trained on in any case")
    rounds: int = knob(8, low=1, high=10_000, why="rounds of the stage whose updates the server sees")
    gradients: int = knob(
        2000, unit="canaries", low=8, high=1_000_000, why="made-up gradients put through DP-SGD itself, the worst case"
    )


@dataclass(frozen=True)
class Shadows:
    """The shadow-model test: is this picture's loss one of a model that knows it, or of one that does not?"""

    models: int = knob(
        16, low=0, high=10_000, why="models, each trained on half the pictures; 0 leaves the test out, else at least 4"
    )
    pictures: int = knob(64, unit="pictures", low=8, high=1_000_000, why="pictures, each in half of the models")
    rounds: int = knob(20, low=1, high=100_000, why="rounds of the stage that each model is trained for")

    def __post_init__(self) -> None:
        if 0 < self.models < 4 or self.models % 2:
            raise SettingsError(f"models: expected 0 or an even number of at least 4, found {self.models}")


@dataclass(frozen=True)
class View:
    """What a server sees of a step, and tries to turn back into pictures."""

    name: str = knob(why="names the view in tables")
    pictures: int = knob(1, unit="pictures", low=1, high=1024, why="pictures in each step of each hospital")
    hospitals: int = knob(
        1, low=1, high=1000, why="hospitals; of more than one the server sees the mean alone (secure aggregation)"
    )
    steps: int = knob(1, low=1, high=1000, why="local steps in the update, of other pictures each")
    sees: str = knob(
        "gradient", choices=("gradient", "update"),
        why="the gradient itself, which is the worst case, or the update that the engine's AdamW makes of it",
    )  # fmt: skip
    noise: float = knob(0.0, low=0.0, high=1000.0, why="noise multiplier of DP-SGD; 0 for none")
    positions: str = knob("fixed", choices=("fixed", "learned"), why="the encoder's positions, as model.positions")
    masks: str = knob(
        "known", choices=("known", "unknown"),
        why="whether the server knows the masks of a pretraining: they follow from the plan's seed, but under privacy they do not",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.sees == "gradient" and self.steps != 1:
            raise SettingsError(f"steps: expected 1 where sees is gradient, found {self.steps}")


VIEWS = (
    View(name="batch 1"),
    View(name="batch 1, learned positions", positions="learned"),
    View(name="batch 2", pictures=2),
    View(name="batch 8", pictures=8),
    View(name="8 hospitals of 1, only the mean is seen", hospitals=8),
    View(name="batch 1, DP-SGD with noise 0.1", noise=0.1),
    View(name="batch 1, DP-SGD with noise 1", noise=1.0),
    View(name="batch 8, DP-SGD with noise 1", pictures=8, noise=1.0),
    View(name="batch 1, learned positions, DP-SGD with noise 1", positions="learned", noise=1.0),
    View(name="AdamW's update of one step, batch 1", sees="update"),
    View(name="AdamW's update of 4 steps, batch 1", sees="update", steps=4),
)


@dataclass(frozen=True)
class Inversion:
    """The reconstruction test."""

    views: tuple[View, ...] = knob(VIEWS, why="what the server sees")
    effort: Effort = knob(factory=Effort, why="how hard the attacker tries")
    warmup: int = knob(1, unit="rounds", low=1, high=1000, why="rounds that the attacked model was trained before")


@dataclass(frozen=True)
class AuditConfig:
    """An audit; `plan` is relative to the file it is written in."""

    plan: Path = knob(why="the plan one of whose stages is audited")
    stage: str = knob("", why="its fine-tuning or pretraining stage; empty means the first that fine-tunes")
    hospitals: PhantomPictures | FolderHospitals = knob(factory=PhantomPictures, why="whose pictures")
    noise: tuple[float, ...] = knob(
        (1.0,), low=0.1, high=1000.0, why="noise multipliers of DP-SGD that are audited, beside none"
    )
    delta: float = knob(1e-5, low=1e-12, high=0.1, why="delta at which both bounds on epsilon are given")
    confidence: float = knob(0.95, low=0.5, high=0.9999, why="confidence of the lower bounds")
    canaries: Canaries = knob(factory=Canaries, why="the one-run test")
    shadows: Shadows = knob(factory=Shadows, why="the shadow-model test")
    inversion: Inversion = knob(factory=Inversion, why="the reconstruction test")

    @property
    def members(self) -> int:
        """How many pictures membership inference needs; no view is of one of them."""
        shadows = self.shadows.pictures if self.shadows.models else 0
        return max(self.canaries.count + self.canaries.others, shadows)

    @property
    def pictures(self) -> int:
        """How many pictures the audit needs."""
        views = [view.pictures * view.hospitals * view.steps for view in self.inversion.views]
        return self.members + max(views, default=0)


def read_audit(path: Path) -> tuple[AuditConfig, Subject]:
    """Read an audit and the audited stage of its plan without what would blur it: augmentation, stochastic depth, weights of positives.

    SettingsError names the file and the dotted key.
    """
    try:
        config = read(AuditConfig, load_yaml(path))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    plan = read_plan(path.parent / config.plan)
    names = [view.name for view in config.inversion.views]
    if len(set(names)) != len(names):
        raise SettingsError(f"{path}: inversion.views: expected each name once, found {names}")
    try:
        return config, _subject(plan, config)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _subject(plan: Plan, config: AuditConfig) -> Subject:
    stages = {each.name: each for each in plan.stages if not isinstance(each, EvaluateStage)}
    first = next((name for name, each in stages.items() if isinstance(each, FinetuneStage)), "")
    name = config.stage or first
    if name not in stages:
        raise SettingsError(
            f"stage: expected a fine-tuning or pretraining stage of {plan.name} ({', '.join(stages) or 'it has none'}), found {name!r}"
        )
    stage = stages[name]
    unknown = [view for view in config.inversion.views if view.masks == "unknown"]
    if isinstance(stage, FinetuneStage):
        if unknown:
            raise SettingsError(f"inversion.views: {unknown[0].name}: expected masks: known, since {name} has none")
        stage = dataclasses.replace(
            stage, init="random", augmentation=PLAIN, drop_path=0.0, positive_weight=1.0, label_fraction=1.0
        )
        return Finetuning(dataclasses.replace(plan, stages=(stage,)), stage)
    if stage.objective != "mae" or stage.masks != 1:
        raise SettingsError(
            f"stage: expected {name} with objective: mae and masks: 1, found {stage.objective} and {stage.masks}"
        )
    for view in config.inversion.views:
        if view.sees == "update" and view.noise and view.masks == "known":
            raise SettingsError(f"inversion.views: {view.name}: expected masks: unknown in an update under DP-SGD")
    stage = dataclasses.replace(stage, init="random", augmentation=PLAIN)
    return Pretraining(dataclasses.replace(plan, stages=(stage,)), stage)


def privacy_of(plan: Plan, noise: float) -> Privacy | None:
    """The plan's DP-SGD with another noise; None for none."""
    return dataclasses.replace(plan.privacy or Privacy(), noise_multiplier=noise) if noise else None
