"""The tables of a comparison of rules: losses under attack, and rounds and bytes to the level of pooled training, with intervals.

Differences are paired: the same held-out patients and the same seeds on both sides, both drawn with repeats in each resample.
Shapes: K seeds, N held-out pictures, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxrbase_model.metrics import auroc, patient_weights, resampled_auroc
from sim.compare import Attack, CompareConfig, Job, Part, Rule, jobs
from sim.compare_bench import Bench, Result
from sim.partition import Partition

Floats = NDArray[np.float64]

RESAMPLES = 1000
REACHED = 0.98  # of pooled training's AUROC: that is what rounds and bytes are counted to
TOLERATED = 0.5  # AUROC points that an attack may cost


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


def tables(findings: Findings) -> str:
    """Markdown: all parts, each under its title."""
    lines = []
    for part in findings.config.parts:
        lines += [f"## {part.title or part.name}", ""]
        lines += attack_tables(findings, part) if part.attacks else convergence_tables(findings, part)
    return "\n".join(lines) + "\n"


def attack_tables(findings: Findings, part: Part) -> Iterator[str]:
    """A table for each number of attackers, and which rules hold under one."""
    cut = part.partitions[0]
    reference = cell(part, cut, part.rules[0])
    for attackers in part.attackers:
        cells = [cell(part, cut, rule, attack, attackers) for rule in part.rules for attack in part.attacks]
        seeds = findings.seeds(reference, *cells, *(cell(part, cut, rule) for rule in part.rules))
        if not seeds:
            yield f"{attackers} of {cut.sites} attack: not all federations of any seed are done yet.\n"
            continue
        yield (
            f"{attackers} of {cut.sites} hospitals attack; {_seeds(seeds)}. AUROC without an attack, and by how many AUROC points each ends "
            f"below `{part.rules[0].name}` without one:\n"
        )
        yield f"| rule | no attack | {' | '.join(attack.name for attack in part.attacks)} |"
        yield "|---" * (2 + len(part.attacks)) + "|"
        for rule in part.rules:
            yield f"| {' | '.join(_attack_row(findings, part, cut, rule, attackers, reference, seeds))} |"
        yield ""
        yield from _verdict(findings, part, cut, attackers, reference, seeds)
        yield ""


def _attack_row(
    findings: Findings, part: Part, cut: Partition, rule: Rule, attackers: int, reference: Job, seeds: Sequence[int]
) -> Iterator[str]:
    yield f"`{rule.name}`"
    yield _interval(findings.auroc(cell(part, cut, rule), seeds), 3)
    for attack in part.attacks:
        job = cell(part, cut, rule, attack, attackers)
        loss = _interval(findings.loss(job, reference, seeds), 1)
        yield f"{loss}, stopped" if any(each.stopped for each in findings.results(job, seeds)) else loss


def _verdict(
    findings: Findings, part: Part, cut: Partition, attackers: int, reference: Job, seeds: Sequence[int]
) -> Iterator[str]:
    yield f"The worst attack on each rule, and whether it costs less than {TOLERATED} points:\n"
    yield "| rule | worst attack | points lost | less? |"
    yield "|---|---|---|---|"
    for rule in part.rules:
        losses = {
            attack.name: findings.loss(cell(part, cut, rule, attack, attackers), reference, seeds)
            for attack in part.attacks
        }
        worst = max(losses, key=lambda name: losses[name].value)
        yield f"| `{rule.name}` | {worst} | {_interval(losses[worst], 2)} | {judged(losses[worst])} |"


def judged(loss: Value) -> str:
    """Whether a loss is tolerated: `yes` where the whole interval is, `yes, but ...` where the estimate alone is."""
    if loss.high < TOLERATED:
        return "yes"
    if loss.value < TOLERATED:
        return f"yes, but the interval reaches {loss.high:.2f}"
    return "no" if loss.low >= TOLERATED else f"no, but the interval reaches down to {loss.low:.2f}"


def convergence_tables(findings: Findings, part: Part) -> Iterator[str]:
    """A table for each cut."""
    for cut in part.partitions:
        pooled = next((cell(part, cut, rule) for rule in part.rules if rule.pooled), None)
        there = [rule for rule in part.rules if findings.seeds(cell(part, cut, rule))]
        seeds = findings.seeds(*(cell(part, cut, rule) for rule in there)) if there else []
        if not seeds:
            continue
        yield f"**{cut.name}**, {cut.sites} hospitals, {_seeds(seeds)}:\n"
        yield f"| rule | AUROC at the end | points below `{part.rules[0].name}` | rounds to {REACHED:.0%} of pooled | MB until then |"
        yield "|---|---|---|---|---|"
        for rule in there:
            job = cell(part, cut, rule)
            rounds, megabytes = _reached(findings, job, pooled, seeds)
            loss = _interval(findings.loss(job, cell(part, cut, part.rules[0]), seeds), 1)
            final = _interval(findings.auroc(job, seeds), 3)
            yield f"| `{rule.name}` | {final} | {loss} | {rounds} | {'' if rule.pooled else megabytes} |"
        yield ""


def _reached(findings: Findings, job: Job, pooled: Job | None, seeds: Sequence[int]) -> tuple[str, str]:
    if pooled is None:
        return "", ""
    goals = [REACHED * result.curve[-1] for result in findings.results(pooled, seeds) if len(result.curve)]
    results = findings.results(job, seeds)
    rounds = [rounds_to(result.curve, goal) for result, goal in zip(results, goals, strict=True)]
    sums = [
        (result.sent + result.received)[number - 1] / 1e6 if number else None
        for result, number in zip(results, rounds, strict=True)
    ]
    return _each(rounds, "{:.0f}"), _each(sums, "{:.0f}")


def rounds_to(curve: Floats, goal: float) -> int | None:
    """The first round whose AUROC is at least `goal`, counted from 1; None where none is."""
    reached = np.flatnonzero(curve >= goal)
    return int(reached[0]) + 1 if len(reached) else None


def _each(values: Sequence[float | None], text: str) -> str:
    """The mean over seeds; how many got there where not all did."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    mean = text.format(float(np.mean(known)))
    return mean if len(known) == len(values) else f"{mean} ({len(known)} of {len(values)} seeds)"


def cell(part: Part, cut: Partition, rule: Rule, attack: Attack | None = None, attackers: int = 0) -> Job:
    """A cell of a table: a job whatever its seed."""
    return Job(part, cut, rule, attack, attackers, 0)


def _key(job: Job) -> str:
    return job.name.rsplit("-", 1)[0]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"


def _interval(value: Value, digits: int) -> str:
    """A value with its interval, such as 0.812 (0.740 to 0.870); no minus before zero."""
    numbers = [round(each, digits) + 0.0 for each in (value.value, value.low, value.high)]
    return f"{numbers[0]:.{digits}f} ({numbers[1]:.{digits}f} to {numbers[2]:.{digits}f})"


def losses(findings: Findings, part: Part, attackers: int) -> Mapping[tuple[str, str], Value]:
    """Points lost by (rule, attack), for a picture of them; empty where no seed is complete."""
    cut = part.partitions[0]
    reference = cell(part, cut, part.rules[0])
    cells = {
        (rule.name, attack.name): cell(part, cut, rule, attack, attackers)
        for rule in part.rules
        for attack in part.attacks
    }
    seeds = findings.seeds(reference, *cells.values())
    return {key: findings.loss(job, reference, seeds) for key, job in cells.items()} if seeds else {}


__all__ = ["CompareConfig", "Curves", "Findings", "Value", "judged", "losses", "paired", "rounds_to", "tables"]
