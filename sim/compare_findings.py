"""The results of a comparison of rules, looked up by what they are of, with intervals.

Differences are paired: the same held-out patients and the same seeds on both sides, both drawn with repeats in each resample.
Shapes: K seeds, N held-out pictures, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.metrics import auroc, patient_weights, resampled_auroc
from sim.compare import Attack, Job, Part, Rule, jobs
from sim.compare_bench import Bench, Result
from sim.partition import Partition

Floats = NDArray[np.float64]

RESAMPLES = 1000


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class Curves:
    """The AUROC of scores and its bootstrap over patients: the mean over groups (real hospitals) that have both classes.

    targets: 0 or 1, [N]. groups, patients: int64 [N].
    """

    def __init__(self, targets_N: Floats, groups_N: NDArray[np.int64], patients_N: NDArray[np.int64]) -> None:
        weights_RN = patient_weights(patients_N, RESAMPLES, 0)
        self._parts = []
        for group in np.unique(groups_N):
            own = groups_N == group
            if 0 < targets_N[own].sum() < own.sum():
                self._parts.append((own, targets_N[own], weights_RN[:, own]))
        if not self._parts:
            raise ValueError("expected held-out pictures of both classes in at least one hospital, found none")

    def value(self, scores_N: Floats) -> float:
        """The AUROC itself."""
        return float(np.mean([auroc(scores_N[own], targets) for own, targets, _ in self._parts]))

    def resampled(self, scores_N: Floats) -> Floats:
        """The AUROC of each resample of the patients, [R]."""
        found = [resampled_auroc(scores_N[own], targets, weights) for own, targets, weights in self._parts]
        return np.asarray(np.mean(found, axis=0), float)


def paired(values_K: Sequence[float], curves_KR: Floats) -> Value:
    """The mean over seeds with its interval: patients are drawn in `curves`, seeds here, with repeats."""
    count = len(curves_KR)
    seeds_RK = np.random.default_rng(0).integers(count, size=(curves_KR.shape[1], count))
    means_R = np.take_along_axis(curves_KR.T, seeds_RK, axis=1).mean(axis=1)
    low, high = np.nanquantile(means_R, [0.025, 0.975])
    return Value(float(np.mean(values_K)), float(low), float(high))


class Findings:
    """The results that are there, looked up by part, cut, rule, attack and number of attackers; a seed counts where all have it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.config = bench, bench.config
        self._jobs: dict[str, dict[int, Job]] = {}
        for job in jobs(bench.config):
            if (bench.out / "jobs" / f"{job.name}.npz").exists():
                self._jobs.setdefault(_key(job), {})[job.seed] = job
        self._known: dict[str, tuple[Result, float, Floats]] = {}
        self._curves: dict[str, Curves] = {}

    def seeds(self, *cells: Job) -> list[int]:
        """The seeds that all these have."""
        found = [set(self._jobs.get(_key(job), {})) for job in cells]
        return sorted(set.intersection(*found)) if found else []

    def results(self, job: Job, seeds: Iterable[int]) -> list[Result]:
        """The results of a job in some seeds."""
        return [self._of(job, seed)[0] for seed in seeds]

    def auroc(self, job: Job, seeds: Sequence[int]) -> Value:
        """The AUROC of the final model on the held-out pictures."""
        found = [self._of(job, seed) for seed in seeds]
        return paired([each[1] for each in found], np.array([each[2] for each in found]))

    def loss(self, job: Job, reference: Job, seeds: Sequence[int]) -> Value:
        """By how many AUROC points a job ends below another, 100 for the whole range."""
        found, best = [self._of(job, seed) for seed in seeds], [self._of(reference, seed) for seed in seeds]
        values = [100 * (other[1] - each[1]) for each, other in zip(found, best, strict=True)]
        curves = np.array([100 * (other[2] - each[2]) for each, other in zip(found, best, strict=True)])
        return paired(values, curves)

    def _of(self, job: Job, seed: int) -> tuple[Result, float, Floats]:
        job = self._jobs[_key(job)][seed]
        if job.name not in self._known:
            result, curves = self.bench.do(job), self._curves_of(job)
            scores = result.scores.astype(float)
            self._known[job.name] = (result, curves.value(scores), curves.resampled(scores))
        return self._known[job.name]

    def _curves_of(self, job: Job) -> Curves:
        key = ",".join(job.partition.of)
        if key not in self._curves:
            pool, rows = self.bench.pool, self.bench.tested(job)
            targets = (pool.labels[rows, 0] >= 0.5).astype(float)
            self._curves[key] = Curves(targets, pool.hospitals[rows], pool.patients[rows])
        return self._curves[key]


def cell(part: Part, cut: Partition, rule: Rule, attack: Attack | None = None, attackers: int = 0) -> Job:
    """A cell of a table: a job whatever its seed."""
    return Job(part, cut, rule, attack, attackers, 0)


def _key(job: Job) -> str:
    return job.name.rsplit("-", 1)[0]
