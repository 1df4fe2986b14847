"""The tables of a study: AUROC per hospital, the mean over draws, with intervals from a bootstrap over patients and draws.

Shapes: K draws (of patients to learn from, and of all else that is random in a training), N tested pictures, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.metrics import auroc, average_precision, calibration_error, patient_weights, resampled_auroc
from sim.pool import Pool
from sim.study import Job, jobs
from sim.study_bench import Bench

_RESAMPLES = 1000
_FEWEST = 5  # pictures of each class


@dataclass(frozen=True)
class Line:
    """A line of a table: its name in charts, its cells, and the AUROC with its interval."""

    name: str
    cells: tuple[str, ...]
    auroc: dict[str, float]


Table = tuple[tuple[str, ...], list[Line]]  # heads of the columns, lines


def tables(bench: Bench) -> str:
    """Markdown: unseen hospitals by recipe, shares of the labels by start and head, and these against the reference."""
    return "\n".join(_markdown(*table) for table in (unseen(bench), shares(bench), against_reference(bench)))


def _markdown(head: tuple[str, ...], lines: list[Line]) -> str:
    rows = (f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *(line.cells for line in lines)))
    return "".join(rows)


def _groups(bench: Bench) -> list[list[Job]]:
    """Jobs that differ in nothing but the seed."""
    groups: dict[tuple[str, str, str, float, str], list[Job]] = {}
    for job in jobs(bench.config, bench.plan):
        groups.setdefault((job.without, job.recipe.name, job.stage, job.labels, job.recipe.init), []).append(job)
    return list(groups.values())


def unseen(bench: Bench) -> Table:
    """Hospitals that were left out of everything, recipe by recipe."""
    head = (
        "hospital left out of everything",
        "recipe",
        "AUROC on all of it",
        "AUPRC",
        "calibration error",
        "hospital told",
    )
    lines = []
    for group in _groups(bench):
        job = group[0]
        found = _tested(bench, group, job.without) if job.without else None
        if found is not None:
            told = np.mean([float(np.load(bench.do(each))["hospital"]) for each in group])
            cells = (job.without, job.recipe.name, *_measures(found), f"{told:.2f}")
            lines.append(Line(f"{job.without}: {job.recipe.name}", cells, _auroc(found)))
    return head, lines


def shares(bench: Bench) -> Table:
    """Few labels, by start and way of training, hospital by hospital."""
    head = (
        "labels", "patients", "training", "start", "hospital", "AUROC on test patients", "ahead of scratch", "AUPRC",
        "calibration error",
    )  # fmt: skip
    lines = []
    groups = [group for group in _groups(bench) if not group[0].without]
    full = groups[0][0].stage if groups else ""
    scratch = {g[0].labels: g for g in groups if g[0].recipe.init == "random" and g[0].stage == full}
    for group in groups:
        job = group[0]
        patients = np.mean([int(np.load(bench.do(each))["patients"]) for each in group])
        for hospital in bench.pools[job.recipe.pictures].names:
            found = _tested(bench, group, hospital)
            if found is not None:
                against = scratch[job.labels]
                other = None if group is against else _tested(bench, against[: len(group)], hospital)
                start = "pretrained" if job.recipe.init == "mae" else "scratch"
                auc, *others = _measures(found)
                cells = (f"{job.labels:.0%}", f"{patients:.0f}", job.stage, start, hospital, auc, _ahead(found, other))
                name = f"{hospital}: {job.labels:.0%}, {job.stage}, {start}"
                lines.append(Line(name, (*cells, *others), _auroc(found)))
    return head, lines


def against_reference(bench: Bench) -> Table:
    """Trainings from the pretrained encoder against the reference network, on the draws of patients that it learned from, too."""
    network = bench.config.reference.network
    head = ("labels", "draws", "training", "hospital", f"AUROC of {network}", "AUROC from pretrained", "ahead")
    groups = [group for group in _groups(bench) if not group[0].without]
    references = {group[0].labels: group for group in groups if group[0].stage == network}
    lines = []
    for group in groups:
        job, reference = group[0], references.get(group[0].labels)
        if reference is None or job.recipe.init != "mae":
            continue
        for hospital in bench.pools[job.recipe.pictures].names:
            ours, its = (_tested(bench, each, hospital) for each in (group[: len(reference)], reference))
            if ours is not None and its is not None:
                results = (f"{_mean(its, auroc):.3f}", f"{_mean(ours, auroc):.3f}", _ahead(ours, its))
                cells = (f"{job.labels:.0%}", str(len(reference)), job.stage, hospital, *results)
                lines.append(Line(f"{hospital}: {job.labels:.0%}, {job.stage}", cells, _auroc(ours)))
    return head, lines


@dataclass(frozen=True)
class Outcome:
    """What the models of a group say of one hospital's tested pictures: scores [K, N], targets [N], patients [N]."""

    scores: NDArray[np.float64]
    targets: NDArray[np.float64]
    patients: NDArray[np.int64]

    def curves(self) -> NDArray[np.float64]:
        """The AUROC of each draw in each resample of the patients, [K, R]; the resamples of the same patients are the same."""
        weights_RN = patient_weights(self.patients, _RESAMPLES, 0)
        return np.array([resampled_auroc(scores, self.targets, weights_RN) for scores in self.scores])


def _tested(bench: Bench, group: list[Job], hospital: str) -> Outcome | None:
    """None where the hospital has not both classes."""
    pool: Pool = bench.pools[group[0].recipe.pictures]
    found = [np.load(bench.do(job)) for job in group]
    rows = found[0]["rows"]  # the draws share them
    chosen = pool.hospitals[rows] == pool.names.index(hospital)
    targets = (pool.labels[rows[chosen], 0] >= 0.5).astype(float)
    if min(targets.sum(), (1 - targets).sum()) < _FEWEST:
        return None
    scores_KN = np.array([each["scores"][chosen] for each in found], float)
    return Outcome(scores_KN, targets, pool.patients[rows[chosen]])


def _auroc(found: Outcome) -> dict[str, float]:
    low, high = interval(found.curves())
    return {"value": _mean(found, auroc), "low": low, "high": high}


def _mean(found: Outcome, measure: Callable[[NDArray[np.float64], NDArray[np.float64]], float]) -> float:
    return float(np.mean([measure(scores, found.targets) for scores in found.scores]))


def _measures(found: Outcome) -> tuple[str, str, str]:
    """The cells of AUROC with its interval, AUPRC and calibration error."""
    auc = _auroc(found)
    precision, error = _mean(found, average_precision), _mean(found, calibration_error)
    return f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})", f"{precision:.3f}", f"{error:.3f}"


def _ahead(found: Outcome, other: Outcome | None) -> str:
    """By how much AUROC is above that of the other start, draw by draw on the same patients, and in how many draws."""
    if other is None:
        return ""
    low, high = interval(found.curves() - other.curves())
    gains = [
        auroc(mine, found.targets) - auroc(its, found.targets)
        for mine, its in zip(found.scores, other.scores, strict=True)
    ]
    won = sum(gain > 0 for gain in gains)
    return f"{np.mean(gains):+.3f} ({low:+.3f} to {high:+.3f}), {won} of {len(gains)}"


def interval(curves_KR: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean over draws, given each draw in each resample of the patients: draws, too, are drawn with repeats."""
    draws_RK = np.random.default_rng(0).integers(len(curves_KR), size=curves_KR.T.shape)
    means_R = np.take_along_axis(curves_KR.T, draws_RK, axis=1).mean(axis=1)
    low, high = np.nanquantile(means_R, [0.025, 0.975])
    return float(low), float(high)
