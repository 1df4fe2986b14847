"""The tables of a comparison of rules: points lost under attack, and rounds and bytes to the level of pooled training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from sim.compare import Attack, Job, Part, Rule
from sim.compare_findings import Findings, Floats, Value, cell
from sim.partition import Partition

REACHED = 0.98  # of pooled training's AUROC: that is what rounds and bytes are counted to
TOLERATED = 0.5  # AUROC points that an attack may cost
_NOT_YET = "not done"


def tables(findings: Findings) -> str:
    """Markdown: all parts, each under its title."""
    lines = []
    for part in findings.config.parts:
        lines += [f"## {part.title or part.name}", ""]
        if part.attacks:
            for attackers in part.attackers:
                lines += Losses(findings, part, attackers).table()
        else:
            lines += convergence_tables(findings, part)
    return "\n".join(lines) + "\n"


class Losses:
    """What each attack by so many hospitals costs under each rule: AUROC points below the part's first rule without an attack."""

    def __init__(self, findings: Findings, part: Part, attackers: int) -> None:
        self._findings, self.part, self.attackers = findings, part, attackers
        self.cut: Partition = part.partitions[0]
        self._reference = cell(part, self.cut, part.rules[0])

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of which everything that was begun is there."""
        cells = [cell(self.part, self.cut, rule) for rule in self.part.rules]
        cells += [self._cell(rule, attack) for rule in self.part.rules for attack in self.part.attacks]
        begun = [each for each in cells if self._findings.seeds(each)]
        return self._findings.seeds(self._reference, *begun)

    def of(self, rule: Rule, attack: Attack) -> Value | None:
        """The points lost; None where that was not run yet."""
        job = self._cell(rule, attack)
        there = self.seeds and self._findings.seeds(job)
        return self._findings.loss(job, self._reference, self.seeds) if there else None

    def table(self) -> Iterator[str]:
        """Markdown: a row for each rule, and the worst attack on each."""
        if not any(self.of(rule, attack) for rule in self.part.rules for attack in self.part.attacks):
            yield f"{self.attackers} of {self.cut.sites} hospitals attack: not done yet.\n"
            return
        yield (
            f"{self.attackers} of {self.cut.sites} hospitals attack; {seeds_of(self.seeds)}. AUROC without an attack, and by how many AUROC "
            f"points each ends below `{self.part.rules[0].name}` without one:\n"
        )
        yield f"| rule | no attack | {' | '.join(attack.name for attack in self.part.attacks)} |"
        yield "|---" * (2 + len(self.part.attacks)) + "|"
        for rule in self.part.rules:
            yield f"| {' | '.join(self._row(rule))} |"
        yield f"\nThe worst attack on each rule, and whether it costs less than {TOLERATED} points:\n"
        yield "| rule | worst attack | points lost | less? |"
        yield "|---|---|---|---|"
        for rule in self.part.rules:
            yield f"| {' | '.join(self._worst(rule))} |"
        yield ""

    def _cell(self, rule: Rule, attack: Attack) -> Job:
        return cell(self.part, self.cut, rule, attack, self.attackers)

    def _row(self, rule: Rule) -> Iterator[str]:
        yield f"`{rule.name}`"
        honest = cell(self.part, self.cut, rule)
        yield interval(self._findings.auroc(honest, self.seeds), 3) if self._findings.seeds(honest) else _NOT_YET
        for attack in self.part.attacks:
            loss = self.of(rule, attack)
            if loss is None:
                yield _NOT_YET
                continue
            results = self._findings.results(self._cell(rule, attack), self.seeds)
            yield interval(loss, 1) + (", stopped" if any(each.stopped for each in results) else "")

    def _worst(self, rule: Rule) -> Iterator[str]:
        yield f"`{rule.name}`"
        known = {attack.name: loss for attack in self.part.attacks if (loss := self.of(rule, attack)) is not None}
        if len(known) < len(self.part.attacks):
            yield from (_NOT_YET, "", "")
            return
        worst = max(known, key=lambda name: known[name].value)
        yield from (worst, interval(known[worst], 2), judged(known[worst]))


def judged(loss: Value) -> str:
    """Whether a loss is tolerated: `yes` where the whole interval is, `yes, but ...` where the estimate alone is."""
    if loss.high < TOLERATED:
        return "yes"
    if loss.value < TOLERATED:
        return f"yes, but the interval reaches {loss.high:.2f}"
    return "no" if loss.low >= TOLERATED else f"no, but the interval reaches down to {loss.low:.2f}"


def convergence_tables(findings: Findings, part: Part) -> Iterator[str]:
    """A table for each cut, of what is there."""
    for cut in part.partitions:
        pooled = next((cell(part, cut, rule) for rule in part.rules if rule.pooled), None)
        there = [rule for rule in part.rules if findings.seeds(cell(part, cut, rule))]
        reference = cell(part, cut, part.rules[0])
        seeds = findings.seeds(*(cell(part, cut, rule) for rule in there)) if there else []
        if not seeds or not findings.seeds(reference) or (pooled and not findings.seeds(pooled)):
            yield f"**{cut.title}**: not done yet.\n"
            continue
        yield f"**{cut.title}**, {cut.sites} hospitals, {seeds_of(seeds)}:\n"
        yield f"| rule | AUROC at the end | points below `{part.rules[0].name}` | rounds to {REACHED:.0%} of pooled | MB until then |"
        yield "|---|---|---|---|---|"
        for rule in there:
            job = cell(part, cut, rule)
            rounds, megabytes = _reached(findings, job, pooled, seeds)
            loss = interval(findings.loss(job, reference, seeds), 1)
            final = interval(findings.auroc(job, seeds), 3)
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


def seeds_of(seeds: Sequence[int]) -> str:
    """Which seeds numbers are the mean of."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(map(str, seeds))}"


def interval(value: Value, digits: int) -> str:
    """A value with its interval, such as 0.812 (0.740 to 0.870); no minus before zero."""
    numbers = [round(each, digits) + 0.0 for each in (value.value, value.low, value.high)]
    return f"{numbers[0]:.{digits}f} ({numbers[1]:.{digits}f} to {numbers[2]:.{digits}f})"
