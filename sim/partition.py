"""One pool of pictures cut into made-up hospitals, patients whole: evenly, with skewed findings, sizes or scanners, or as they came.

Every cut is a pure function of the table and a seed. Label and size skew are those of NIID-Bench (Li et al. 2022, arXiv 2102.02079):
for each class, or for all patients, the hospitals' shares are drawn from a symmetric Dirichlet distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.settings import SettingsError, knob

Rows = NDArray[np.int64]

_DRAWS = 2000  # of shares, until every hospital has enough patients


@dataclass(frozen=True)
class Even:
    """Patients at random, as many in each."""

    kind: str = knob("even", choices=("even",), why="names the cut")
    sites: int = knob(8, unit="hospitals", low=1, high=1000, why="number of hospitals")
    of: tuple[str, ...] = knob((), why="real hospitals whose pictures are used; all where none are named")

    @property
    def name(self) -> str:
        """Short, for files."""
        return "even"

    @property
    def title(self) -> str:
        """For people."""
        return "patients dealt out evenly"


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each class is shared out by itself."""

    kind: str = knob("dirichlet", choices=("dirichlet",), why="names the cut")
    sites: int = knob(8, unit="hospitals", low=2, high=1000, why="number of hospitals")
    of: tuple[str, ...] = knob((), why="real hospitals whose pictures are used; all where none are named")
    alpha: float = knob(
        0.5, low=0.01, high=1e6, why="concentration: 0.1 gives hospitals of nearly one class, 10 nearly even ones"
    )
    least: int = knob(
        8, unit="patients", low=1, high=100_000, why="fewest in a hospital; shares are drawn again until all have them"
    )

    @property
    def name(self) -> str:
        """Short, for files."""
        return f"labels-{self.alpha:g}"

    @property
    def title(self) -> str:
        """For people."""
        return f"label skew, Dirichlet {self.alpha:g}"


@dataclass(frozen=True)
class Quantity:
    """Size skew: the classes alike, a few hospitals with most patients."""

    kind: str = knob("quantity", choices=("quantity",), why="names the cut")
    sites: int = knob(8, unit="hospitals", low=2, high=1000, why="number of hospitals")
    of: tuple[str, ...] = knob((), why="real hospitals whose pictures are used; all where none are named")
    alpha: float = knob(0.5, low=0.01, high=1e6, why="concentration of the sizes")
    least: int = knob(
        8, unit="patients", low=1, high=100_000, why="fewest in a hospital; shares are drawn again until all have them"
    )

    @property
    def name(self) -> str:
        """Short, for files."""
        return f"sizes-{self.alpha:g}"

    @property
    def title(self) -> str:
        """For people."""
        return f"size skew, Dirichlet {self.alpha:g}"


@dataclass(frozen=True)
class Scanners:
    """Feature skew: an even cut, and grey values that each hospital's scanner changes in its own way."""

    kind: str = knob("scanners", choices=("scanners",), why="names the cut")
    sites: int = knob(8, unit="hospitals", low=1, high=1000, why="number of hospitals")
    of: tuple[str, ...] = knob((), why="real hospitals whose pictures are used; all where none are named")
    strength: float = knob(
        1.0,
        low=0.0,
        high=2.0,
        why="largest change of log gamma; contrast and brightness change by half and a fifth of it",
    )

    @property
    def name(self) -> str:
        """Short, for files."""
        return "scanners"

    @property
    def title(self) -> str:
        """For people."""
        return "scanners differ"


@dataclass(frozen=True)
class Natural:
    """Every made-up hospital has pictures of one real hospital only."""

    kind: str = knob("natural", choices=("natural",), why="names the cut")
    cut: dict[str, int] = knob(why="real hospitals, and into how many each is cut")

    def __post_init__(self) -> None:
        if not self.cut or min(self.cut.values()) < 1:
            raise SettingsError(f"cut: expected hospitals with a number of at least 1 each, found {self.cut}")

    @property
    def sites(self) -> int:
        """Number of hospitals."""
        return sum(self.cut.values())

    @property
    def of(self) -> tuple[str, ...]:
        """The real hospitals whose pictures are used."""
        return tuple(self.cut)

    @property
    def name(self) -> str:
        """Short, for files."""
        return "natural"

    @property
    def title(self) -> str:
        """For people."""
        return "as they came"


Partition = Even | Dirichlet | Quantity | Scanners | Natural


def assign(
    cut: Partition, patients_N: Rows, positive_N: NDArray[np.bool_], hospitals_N: Rows, names: list[str], seed: int
) -> Rows:
    """The made-up hospital of each picture, [N], -1 where its real hospital takes no part.

    patients: no two hospitals' alike. positive: whether a picture shows the finding; a patient is of the class of any of its pictures.
    SettingsError where the cut names a hospital that is not there, or has too few patients for its hospitals.
    """
    unknown = sorted(set(cut.of) - set(names))
    if unknown:
        raise SettingsError(f"of: expected hospitals among {', '.join(names)}; found {', '.join(unknown)}")
    taking_part = np.isin(hospitals_N, [names.index(name) for name in cut.of or names])
    patients, first, index = np.unique(patients_N[taking_part], return_index=True, return_inverse=True)
    classes = np.zeros(len(patients), np.int64)
    np.maximum.at(classes, index, positive_N[taking_part].astype(np.int64))
    origins = hospitals_N[taking_part][first]
    site_of_patient = _sites(cut, classes, origins, names, np.random.default_rng(seed))
    sites = np.full(len(patients_N), -1, np.int64)
    sites[taking_part] = site_of_patient[index]
    return sites


def _sites(cut: Partition, classes_P: Rows, origins_P: Rows, names: list[str], rng: np.random.Generator) -> Rows:
    if isinstance(cut, Natural):
        sites, start = np.zeros(len(classes_P), np.int64), 0
        for name, count in cut.cut.items():
            own = np.flatnonzero(origins_P == names.index(name))
            sites[own] = start + _even(classes_P[own], count, rng)
            start += count
        return sites
    if isinstance(cut, Dirichlet):
        return _until_all_have(cut, classes_P, rng)
    if isinstance(cut, Quantity):
        return _until_all_have(cut, np.zeros_like(classes_P), rng)
    return _even(classes_P, cut.sites, rng)


def _even(classes_P: Rows, sites: int, rng: np.random.Generator) -> Rows:
    """Each class dealt out in turn, so that numbers of patients differ by one at most."""
    if len(classes_P) < sites:
        raise SettingsError(f"sites: expected at most one for each of {len(classes_P)} patients, found {sites}")
    order = rng.permutation(len(classes_P))
    order = order[np.argsort(classes_P[order], kind="stable")]
    found = np.zeros(len(classes_P), np.int64)
    found[order] = np.arange(len(order)) % sites
    return found


def _until_all_have(cut: Dirichlet | Quantity, classes_P: Rows, rng: np.random.Generator) -> Rows:
    for _ in range(_DRAWS):
        found = np.zeros(len(classes_P), np.int64)
        for each in np.unique(classes_P):
            own = rng.permutation(np.flatnonzero(classes_P == each))
            shares = rng.dirichlet(np.full(cut.sites, cut.alpha))
            ends = np.round(np.cumsum(shares) * len(own)).astype(np.int64)
            found[own] = np.searchsorted(ends[:-1], np.arange(len(own)), side="right")
        if np.bincount(found, minlength=cut.sites).min() >= cut.least:
            return found
    raise SettingsError(
        f"least: {cut.least} patients in each of {cut.sites} hospitals did not come up in {_DRAWS} draws at alpha {cut.alpha:g}; "
        "take fewer hospitals or patients, or a larger alpha"
    )


def grey_values(cut: Partition, site: int) -> NDArray[np.uint8]:
    """What a hospital's scanner makes of each of the 256 grey values; the identity where scanners do not differ."""
    levels = np.arange(256) / 255
    if isinstance(cut, Scanners):
        rng = np.random.default_rng((site, 17))  # of the hospital alone: the same scanners in every seed of a study
        place = 2 * site / max(1, cut.sites - 1) - 1  # gammas evenly from dark to bright
        contrast, brightness = rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.2)
        levels = levels ** np.exp(cut.strength * place)
        levels = 0.5 + (levels - 0.5) * (1 + cut.strength * contrast) + cut.strength * brightness
    return np.round(np.clip(levels, 0, 1) * 255).astype(np.uint8)
