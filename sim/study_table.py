"""The tables of a study: AUROC per hospital, the mean over seeds, with intervals from a bootstrap over patients and seeds.

Shapes: K seeds, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.metrics import auroc, average_precision, calibration_error, patient_weights, resampled_auroc
from sim.study import Bench, Job, jobs

_RESAMPLES = 1000
_TEST = 2


@dataclass(frozen=True)
class Line:
    """A line of a table: its name in charts, its cells, and the AUROC with its interval."""

    name: str
    cells: tuple[str, ...]
    auroc: dict[str, float]


Table = tuple[tuple[str, ...], list[Line]]  # heads of the columns, lines


def tables(bench: Bench) -> str:
    """Markdown: unseen hospitals by recipe, and shares of the labels by start and head."""
    return "\n".join(_markdown(*table) for table in (unseen(bench), shares(bench)))


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
        found = _measures(bench, group, job.without, None) if job.without else None
        if found is not None:
            auc, cells = found
            told = np.mean([float(np.load(bench.do(each))["hospital"]) for each in group])
            lines.append(
                Line(f"{job.without}: {job.recipe.name}", (job.without, job.recipe.name, *cells, f"{told:.2f}"), auc)
            )
    return head, lines


def shares(bench: Bench) -> Table:
    """Few labels, by start and way of training, hospital by hospital."""
    head = ("labels", "training", "start", "hospital", "AUROC on test patients", "AUPRC", "calibration error")
    lines = []
    for group in _groups(bench):
        job = group[0]
        for hospital in bench.pools[job.recipe.pictures].names:
            found = None if job.without else _measures(bench, group, hospital, _TEST)
            if found is not None:
                auc, cells = found
                start = "pretrained" if job.recipe.init == "mae" else "scratch"
                first = (f"{job.labels:.0%}", job.stage, start, hospital)
                lines.append(Line(f"{hospital}: {job.labels:.0%}, {job.stage}, {start}", (*first, *cells), auc))
    return head, lines


def _measures(
    bench: Bench, group: list[Job], hospital: str, split: int | None
) -> tuple[dict[str, float], tuple[str, ...]] | None:
    """AUROC with its interval, and the cells of it, AUPRC and calibration error; None where the hospital has not both classes."""
    pool = bench.pools[group[0].recipe.pictures]
    scores_KN, rows = _scores(bench, group)
    chosen = pool.hospitals[rows] == pool.names.index(hospital)
    if split is not None:
        chosen &= pool.splits[rows] == split
    scores_KN, rows = scores_KN[:, chosen], rows[chosen]
    targets = (pool.labels[rows, 0] >= 0.5).astype(float)
    if min(targets.sum(), (1 - targets).sum()) < 5:
        return None
    low, high = interval(scores_KN, targets, pool.patients[rows])
    mean, precision, error = (
        float(np.mean([measure(scores, targets) for scores in scores_KN]))
        for measure in (auroc, average_precision, calibration_error)
    )
    cells = (f"{mean:.3f} ({low:.3f} to {high:.3f})", f"{precision:.3f}", f"{error:.3f}")
    return {"value": mean, "low": low, "high": high}, cells


def interval(
    scores_KN: NDArray[np.float64], targets_N: NDArray[np.float64], patients_N: NDArray[np.int64]
) -> tuple[float, float]:
    """The 95 % interval of the mean AUROC over seeds: patients and seeds are both drawn with repeats."""
    weights_RN = patient_weights(patients_N, _RESAMPLES, 0)
    curves_KR = np.array([resampled_auroc(scores, targets_N, weights_RN) for scores in scores_KN])
    seeds_RK = np.random.default_rng(0).integers(len(curves_KR), size=(_RESAMPLES, len(curves_KR)))
    means_R = np.take_along_axis(curves_KR.T, seeds_RK, axis=1).mean(axis=1)
    low, high = np.nanquantile(means_R, [0.025, 0.975])
    return float(low), float(high)


def _scores(bench: Bench, group: list[Job]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The probabilities of each seed, [K, N], and the rows they are of, which the seeds share."""
    found = [np.load(bench.do(job)) for job in group]
    return np.array([each["scores"][:, 0] for each in found], float), found[0]["rows"]
