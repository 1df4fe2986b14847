"""The tables of a study: AUROC per hospital, the mean over seeds, with intervals from a bootstrap over patients and seeds.

Shapes: K seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.metrics import auroc, average_precision, calibration_error, patient_weights, resampled_auroc
from sim.study import Bench, Job, Pool, jobs

_RESAMPLES = 1000
_TEST = 2


def tables(bench: Bench) -> str:
    """Markdown: unseen hospitals by recipe, and shares of the labels by start and head."""
    groups: dict[tuple[str, str, str, float, str], list[Job]] = {}
    for job in jobs(bench.config, bench.plan):
        groups.setdefault((job.without, job.recipe.name, job.stage, job.labels, job.recipe.init), []).append(job)
    unseen = [group for key, group in groups.items() if key[0]]
    shares = [group for key, group in groups.items() if not key[0]]
    return "\n".join([*_unseen(bench, unseen), "", *_shares(bench, shares), ""])


def _unseen(bench: Bench, groups: Iterable[list[Job]]) -> Iterable[str]:
    yield "| recipe | hospital left out of everything | AUROC on all of it | AUPRC | calibration error |"
    yield "|---|---|---|---|---|"
    for group in groups:
        pool = bench.pools[group[0].recipe.intensity]
        yield f"| {group[0].recipe.name} | {group[0].without} | {_cells(bench, pool, group, group[0].without, None)} |"


def _shares(bench: Bench, groups: Iterable[list[Job]]) -> Iterable[str]:
    yield "| labels | training | start | hospital | AUROC on test patients | AUPRC | calibration error |"
    yield "|---|---|---|---|---|---|---|"
    for group in groups:
        job, pool = group[0], bench.pools[group[0].recipe.intensity]
        for hospital in pool.names:
            if cells := _cells(bench, pool, group, hospital, _TEST):
                start = "pretrained" if job.recipe.init == "mae" else "scratch"
                yield f"| {job.labels:.0%} | {job.stage} | {start} | {hospital} | {cells} |"


def _cells(bench: Bench, pool: Pool, group: list[Job], hospital: str, split: int | None) -> str:
    """AUROC with its interval, AUPRC and calibration error; empty where the hospital has not both classes."""
    scores_KN, rows = _scores(bench, group)
    chosen = pool.hospitals[rows] == pool.names.index(hospital)
    if split is not None:
        chosen &= pool.splits[rows] == split
    scores_KN, rows = scores_KN[:, chosen], rows[chosen]
    targets = (pool.labels[rows, 0] >= 0.5).astype(float)
    if min(targets.sum(), (1 - targets).sum()) < 5:
        return ""
    low, high = interval(scores_KN, targets, pool.patients[rows])
    mean = np.mean([auroc(scores, targets) for scores in scores_KN])
    precision = np.mean([average_precision(scores, targets) for scores in scores_KN])
    error = np.mean([calibration_error(scores, targets) for scores in scores_KN])
    return f"{mean:.3f} ({low:.3f} to {high:.3f}) | {precision:.3f} | {error:.3f}"


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
