"""Differential privacy of what a training has learned from single patients or pictures: the plan's `privacy:` section."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import SettingsError, knob
from cxrbase_model.stages import EvaluateStage, FinetuneStage, Stage

UNITS = ("patient", "picture")


@dataclass(frozen=True)
class Privacy:
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133) in every training stage, in every hospital.

    Neighbouring data sets differ in one unit, added or removed. The noise is drawn in the hospital and known to nobody.
    """

    unit: str = knob(
        "patient", choices=UNITS,
        why="what is protected: a patient with all pictures, one of which is drawn for a step; or a single picture",
    )  # fmt: skip
    noise_multiplier: float = knob(
        1.0, low=0.1, high=1000.0, why="standard deviation of a step's noise over clip; more is more private"
    )
    clip: float = knob(1.0, low=1e-9, high=1e9, why="largest Euclidean norm of one unit's gradient")
    clipping: str = knob(
        "flat", choices=("flat", "per-layer", "automatic"),
        why="one norm over all weights, one for each tensor, or every gradient scaled to the clip (Bu et al. 2022, arXiv 2206.07136)",
    )  # fmt: skip


@dataclass(frozen=True)
class Mechanism:
    """What one round of DP-SGD costs: a Gaussian mechanism on a Poisson sample, so many times.

    noise: standard deviation over the largest norm of one unit's part. rate: chance in (0, 1] of each unit to be in a step.
    """

    unit: str
    noise: float
    rate: float
    steps: int


def check_stage(stage: Stage, where: str) -> None:
    """SettingsError where a stage of a plan with `privacy:` asks for something that no noise would cover."""
    if not isinstance(stage, FinetuneStage):
        return
    if stage.positive_weight != 1.0:
        raise SettingsError(
            f"{where}.positive_weight: expected 1.0 under privacy, since a hospital's counts of a finding would not be protected, "
            f"found {stage.positive_weight}"
        )
    if stage.balance != "none":
        raise SettingsError(
            f"{where}.balance: expected none under privacy, where everybody is drawn with the same chance, found {stage.balance}"
        )
    if stage.label_fraction != 1.0:
        raise SettingsError(
            f"{where}.label_fraction: expected 1.0 under privacy, since which patients have labels would follow from the plan, "
            f"found {stage.label_fraction}"
        )


def check_stages(privacy: Privacy | None, stages: tuple[Stage, ...]) -> None:
    """SettingsError where a plan's stages ask for something that its `privacy:` cannot give; an evaluation trains nothing."""
    for index, stage in enumerate(stages if privacy is not None else ()):
        if not isinstance(stage, EvaluateStage):
            check_stage(stage, f"stages[{index}]")


_PROTECTED = {
    "patient": (
        "Each patient, with all pictures and labels of that patient",
        "each patient of the training set takes part with the same small chance, by one picture drawn from the patient's own",
    ),
    "picture": (
        "Each single picture, with its labels, but not a patient who has several",
        "each picture of the training set takes part with the same small chance",
    ),
}
_CLIPPED = {
    "flat": "what it changes is cut to a Euclidean length of at most {clip:g}",
    "per-layer": "what it changes is cut, weight by weight, to a Euclidean length of at most {clip:g} in all",
    "automatic": "what it changes is scaled to a Euclidean length below {clip:g}",
}


def describe(privacy: Privacy) -> str:
    """The guarantee in plain words: who is protected, by what, and against whom. How much is the accountant's epsilon and delta."""
    who, drawn = _PROTECTED[privacy.unit]
    clipped = _CLIPPED[privacy.clipping].format(clip=privacy.clip)
    deviation = privacy.noise_multiplier * privacy.clip
    return (
        f"{who}, is protected: whoever sees what the training releases, even all of it and knowing everybody else in the data, can hardly "
        f"tell whether the protected {privacy.unit} was in it. In each step {drawn}; {clipped}; and normal noise of standard deviation "
        f"{deviation:g} ({privacy.noise_multiplier:g} times that length), drawn inside the hospital and known to nobody, is added to the sum. "
        "Losses, scores and times of the training are not released."
    )
