"""Differential privacy of what a training has learned from single patients or pictures: the plan's `privacy:` section."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import knob

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
