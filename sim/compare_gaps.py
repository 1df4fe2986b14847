"""Whom a model serves worse: AUROC by hospital, sex and age, and the gap between the best and the worst served, with intervals.

A gap is never below zero, so groups that are served alike have one too: what it would be by chance stands beside it, the mean gap where
patients are dealt to groups of these sizes at random. Computed by the simulation on its test pictures; no hospital sends such numbers.
Shapes: N tested pictures, G groups, K seeds, R resamples of the patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.archive.identity import AGE_BANDS, SEXES
from cxrbase_model.metrics import auroc, patient_weights, resampled_auroc
from sim.compare import Job, Part
from sim.compare_findings import RESAMPLES, Findings, Floats, Value, cell, paired
from sim.compare_table import interval, seeds_of
from sim.pool import Pool

LEAST = 10  # patients of each class that a group has to have
_DEALS = 100  # of patients to groups by chance
_AGES = {"under 40": AGE_BANDS[1:5], "40 to 59": AGE_BANDS[5:7], "60 and over": AGE_BANDS[7:]}


@dataclass(frozen=True)
class Groups:
    """The tested pictures and whose they are. index: int64 [N] into names, -1 for none of them. targets: 0 or 1, [N]. patients: [N]."""

    names: list[str]
    index: NDArray[np.int64]
    targets: Floats
    patients: NDArray[np.int64]

    def aurocs(self, scores_N: Floats, index_N: NDArray[np.int64] | None = None) -> Floats:
        """The AUROC of each group, [G]; of another dealing of the pictures to groups, where one is given."""
        index = self.index if index_N is None else index_N
        return np.array(
            [auroc(scores_N[index == each], self.targets[index == each]) for each in range(len(self.names))]
        )

    def resampled(self, scores_N: Floats) -> Floats:
        """The AUROC of each group in each resample of the patients, [G, R]."""
        weights_RN, own_GN = (
            patient_weights(self.patients, RESAMPLES, 0),
            self.index == np.arange(len(self.names))[:, None],
        )
        return np.array([resampled_auroc(scores_N[own], self.targets[own], weights_RN[:, own]) for own in own_GN])

    def by_chance(self, scores_N: Floats) -> float:
        """The mean gap where the patients are dealt to groups of these sizes at random, AUROC points."""
        rng, (_, first, patient) = (
            np.random.default_rng(0),
            np.unique(self.patients, return_index=True, return_inverse=True),
        )
        deals = (self.aurocs(scores_N, rng.permutation(self.index[first])[patient]) for _ in range(_DEALS))
        return float(np.nanmean([gap(each) for each in deals]))


def gap(aurocs: Floats) -> Floats:
    """AUROC points, 100 for the whole range, from the worst to the best served group: [G, ...] to [...]."""
    return np.asarray(100 * (np.max(aurocs, axis=0) - np.min(aurocs, axis=0)))


def groups_of(pool: Pool, rows: NDArray[np.int64], attribute: str) -> Groups:
    """The groups by `hospital`, `sex` or `age` that have enough patients of both classes among some rows."""
    if attribute == "hospital":
        named = {name: pool.hospitals[rows] == number for number, name in enumerate(pool.names)}
    elif attribute == "sex":
        named = {name: pool.groups["sex"][rows] == number for number, name in enumerate(SEXES) if number}
    else:
        bands = np.array(AGE_BANDS)[pool.groups["age_band"][rows]]
        named = {name: np.isin(bands, of) for name, of in _AGES.items()}
    targets, patients = (pool.labels[rows, 0] >= 0.5).astype(float), pool.patients[rows]
    enough = {
        name: own for name, own in named.items()
        if min(len(np.unique(patients[own & (targets == each)])) for each in (0, 1)) >= LEAST
    }  # fmt: skip
    index = np.full(len(rows), -1)
    for number, own in enumerate(enough.values()):
        index[own] = number
    return Groups(list(enough), index, targets, patients)


def gap_tables(findings: Findings, part: Part) -> Iterator[str]:
    """Markdown: a table for each cut and each attribute that the part asks for, of the rules that are there."""
    for cut in part.partitions:
        jobs = [job for rule in part.rules if findings.seeds(job := cell(part, cut, rule))]
        seeds = findings.seeds(*jobs) if jobs else []
        for attribute in part.gaps if seeds else ():
            yield from _table(findings, jobs, attribute, seeds)


def _table(findings: Findings, jobs: Sequence[Job], attribute: str, seeds: Sequence[int]) -> Iterator[str]:
    bench = findings.bench
    groups = groups_of(bench.pool, bench.tested(jobs[0]), attribute)
    if len(groups.names) < 2:
        yield f"By {attribute}: fewer than two groups have {LEAST} patients of each class.\n"
        return
    yield (
        f"AUROC by {attribute}, {seeds_of(seeds)}, and the gap in AUROC points; `by chance` is the mean gap of groups of these sizes dealt "
        "at random:\n"
    )
    counts = [int((groups.index == number).sum()) for number in range(len(groups.names))]
    heads = [f"{name} ({count} pictures)" for name, count in zip(groups.names, counts, strict=True)]
    yield f"| rule | {' | '.join(heads)} | gap | by chance | gap beyond that of `{jobs[0].rule.name}` |"
    yield "|---" * (4 + len(heads)) + "|"
    first = _Served(findings, groups, jobs[0], seeds)
    for job in jobs:
        yield f"| {' | '.join(_Served(findings, groups, job, seeds).row(first))} |"
    yield ""


class _Served:
    """How well a job's models serve the groups."""

    def __init__(self, findings: Findings, groups: Groups, job: Job, seeds: Sequence[int]) -> None:
        self._job = job
        scores = [result.scores.astype(float) for result in findings.results(job, seeds)]
        self._values_KG = np.array([groups.aurocs(each) for each in scores])
        self._curves_KGR = np.array([groups.resampled(each) for each in scores])
        self.gaps_K = [float(gap(each)) for each in self._values_KG]
        self.gaps_KR = np.array([gap(each) for each in self._curves_KGR])
        self._by_chance = float(np.mean([groups.by_chance(each) for each in scores]))

    def row(self, first: _Served) -> Iterator[str]:
        """The cells of the job's line."""
        yield f"`{self._job.rule.name}`"
        for number in range(self._values_KG.shape[1]):
            yield interval(paired(list(self._values_KG[:, number]), self._curves_KGR[:, number]), 3)
        yield interval(paired(self.gaps_K, self.gaps_KR), 1)
        yield f"{self._by_chance:.1f}"
        yield "" if self._job == first._job else interval(self._beyond(first), 1)

    def _beyond(self, first: _Served) -> Value:
        values = [own - other for own, other in zip(self.gaps_K, first.gaps_K, strict=True)]
        return paired(values, self.gaps_KR - first.gaps_KR)
