"""What the aggregation rules are worth: many small federations, each with a rule, a cut into hospitals and, where wanted, attackers.

A job is one federation, run by `sim.federation` with the hospitals' and the server's own code; its result is a file, so that a study
that was interrupted goes on. Seeds come outermost: an interrupted study has whole seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.plan import FinetuneStage, Plan, read_plan
from cxrbase_model.privacy import Privacy
from cxrbase_model.settings import SettingsError, digest, knob, load_yaml, read, to_mapping
from cxrbase_model.transport import Transport
from sim.config import FolderHospitals, PhantomHospitals
from sim.partition import Even, Partition

LABEL_FLIP, INVERTED = "label-flip", "inverted"  # attacks on a hospital's data; the others change its update
JUDGED = ("test", "validation")
Setting = bool | int | float | str
ATTACKS = ("sign-flip", "scaled", "head-flip", "noise", LABEL_FLIP, "free-rider", "colluding", "nan", INVERTED)


@dataclass(frozen=True)
class Rule:
    """One way to make a model of updates."""

    name: str = knob(why="names the rule in tables and files")
    aggregation: Aggregation = knob(factory=Aggregation, why="as in a plan")
    outlier: float | None = knob(None, low=1.0, why="as federation.outlier in a plan")
    longest: float | None = knob(None, low=1.0, why="as federation.longest in a plan")
    shortest: float | None = knob(None, low=1e-6, high=1.0, why="as federation.shortest in a plan")
    cosine: float | None = knob(None, low=-1.0, high=1.0, why="as federation.cosine in a plan")
    weighting: str | None = knob(
        None, choices=("examples", "uniform"), why="as federation.weighting in a plan; none is the plan's"
    )
    transport: Transport | None = knob(None, why="as in a plan; none is the plan's")
    privacy: Privacy | None = knob(None, why="as in a plan: differential privacy of patients or pictures")
    stage: dict[str, Setting | dict[str, Setting]] = knob(
        factory=dict, why="what it changes of the plan's last stage, key by key"
    )
    pooled: bool = knob(False, why="all pictures in one hospital instead: what the rules are measured against")


@dataclass(frozen=True)
class Attack:
    """What the attacking hospitals do; see `sim.attacks`. `factor` is that of the attack's length, where it has one."""

    kind: str = knob(choices=ATTACKS, why="what is done")
    factor: float = knob(1.0, low=0.0, high=1e6, why="length of what is sent, in lengths of the honest update")

    @property
    def name(self) -> str:
        """Short, for tables and files."""
        return self.kind if self.factor == 1.0 else f"{self.kind}-x{self.factor:g}"


@dataclass(frozen=True)
class Part:
    """One table: every rule in every cut, without attackers and under each attack by each number of them."""

    name: str = knob(why="names the part in files")
    title: str = knob("", why="the heading over its table")
    plan: Path = knob(why="what every federation trains, relative to the study; its last stage fine-tunes")
    partitions: tuple[Partition, ...] = knob(factory=lambda: (Even(),), why="how the pictures are cut into hospitals")
    rules: tuple[Rule, ...] = knob(why="rules that are compared, the reference first")
    attacks: tuple[Attack, ...] = knob((), why="attacks, each by each number of attackers")
    attackers: tuple[int, ...] = knob((1, 2), low=1, high=1000, why="how many of the hospitals attack, the last ones")
    rounds: int | None = knob(None, low=1, high=100_000, why="rounds of the last stage, where they are not the plan's")
    gaps: tuple[str, ...] = knob(
        (), choices=("hospital", "sex", "age"), why="groups of the judged patients whose AUROC is told apart"
    )
    curve: bool = knob(True, why="AUROC after every round, on the pictures that are watched, and not at the end alone")

    def __post_init__(self) -> None:
        for what, found in (
            ("rules", [each.name for each in self.rules]),
            ("attacks", [each.name for each in self.attacks]),
            ("partitions", [each.name for each in self.partitions]),
        ):
            if not found and what != "attacks":
                raise SettingsError(f"{what}: expected at least one, found none")
            if len(set(found)) != len(found):
                raise SettingsError(f"{what}: expected each once, found {', '.join(found)}")


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of rules."""

    hospitals: FolderHospitals | PhantomHospitals = knob(factory=PhantomHospitals, why="whose pictures are used")
    seeds: tuple[int, ...] = knob((1, 2, 3), low=0, why="every federation once for each")
    held_out: float = knob(0.25, low=0.05, high=0.9, why="share of the patients that no training sees, to test on")
    validation: float = knob(
        0.0, low=0.0, high=0.5, why="share of the patients, none of them to train or test on, to choose settings on"
    )
    judged: str = knob(
        "test",
        choices=JUDGED,
        why="whose pictures results are of; where settings are chosen, test patients stay unseen",
    )
    watched: int = knob(
        400, unit="pictures", low=10, high=1_000_000, why="held-out pictures tested on after each round"
    )
    largest_patient: int | None = knob(
        None, unit="pictures", low=1,
        why="an identifier of more pictures than this is no person's, and each of its pictures is taken for a patient; none trusts all",
    )  # fmt: skip
    parts: tuple[Part, ...] = knob(why="the tables")

    def __post_init__(self) -> None:
        if self.judged == "validation" and not self.validation:
            raise SettingsError("validation: expected a share above 0 where judged is validation, found 0")
        if self.held_out + self.validation > 0.9:
            raise SettingsError(
                f"validation: expected at most 0.9 with held_out, found {self.held_out + self.validation:g}"
            )


@dataclass(frozen=True)
class Job:
    """One federation; `attack` is None, and `attackers` 0, where all hospitals are honest."""

    part: Part
    partition: Partition
    rule: Rule
    attack: Attack | None
    attackers: int
    seed: int

    @property
    def name(self) -> str:
        """The file's name of the job's result, below the folder of results."""
        attack = f"-{self.attack.name}-by-{self.attackers}" if self.attack else ""
        return f"{self.part.name}/{self.partition.name}-{self.rule.name}{attack}-{self.seed}"


def read_compare(path: Path) -> tuple[CompareConfig, dict[str, Plan]]:
    """Read a study and the plan of each of its parts; SettingsError names the file and the dotted key."""
    try:
        config = read(CompareConfig, load_yaml(path))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    plans = {part.name: read_plan(path.parent / part.plan) for part in config.parts}
    if len(plans) != len(config.parts):
        raise SettingsError(f"{path}: parts: expected each name once, found {', '.join(p.name for p in config.parts)}")
    for part in config.parts:
        if not isinstance(plans[part.name].stages[-1], FinetuneStage):
            raise SettingsError(f"{path}: {part.plan}: expected a plan whose last stage fine-tunes")
        for job in _jobs(part, 0):
            try:
                plan_of(plans[part.name], job)
            except SettingsError as error:
                raise SettingsError(f"{path}: {job.name}: {error}") from None
    if len({digest(plan.data) for plan in plans.values()}) != 1:
        raise SettingsError(f"{path}: parts: expected plans with the same data section, found different ones")
    return config, plans


def jobs(config: CompareConfig) -> Iterator[Job]:
    """All jobs, seed by seed and part by part."""
    for seed in config.seeds:
        for part in config.parts:
            yield from _jobs(part, seed)


def _jobs(part: Part, seed: int) -> Iterator[Job]:
    for partition in part.partitions:
        for rule in part.rules:
            yield Job(part, partition, rule, None, 0, seed)
        for attackers in part.attackers:
            for rule in part.rules:
                for attack in part.attacks:
                    yield Job(part, partition, rule, attack, attackers, seed)


def plan_of(plan: Plan, job: Job) -> Plan:
    """The plan of one federation; SettingsError where its quorum is too small for the rule."""
    assert isinstance(plan.stages[-1], FinetuneStage)  # read_compare has seen to it
    changed = {key: getattr(job.rule, key) for key in ("outlier", "longest", "shortest", "cosine", "weighting")}
    changed = {key: value for key, value in changed.items() if value is not None}
    federation = dataclasses.replace(plan.federation, **changed, repeats=0)
    if job.rule.pooled:
        federation = dataclasses.replace(federation, quorum=1)
    rounds = {"rounds": job.part.rounds} if job.part.rounds else {}
    last = read(FinetuneStage, _merged(to_mapping(plan.stages[-1]), rounds | job.rule.stage), "stage")
    return dataclasses.replace(
        plan, seed=job.seed, federation=federation, aggregation=job.rule.aggregation, privacy=job.rule.privacy,
        transport=job.rule.transport or plan.transport, stages=(*plan.stages[:-1], last),
    )  # fmt: skip


def _merged(mapping: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with some keys changed; those of mappings in it by themselves."""
    both = {
        key: value for key, value in changes.items() if isinstance(mapping.get(key), dict) and isinstance(value, dict)
    }
    inner = {key: _merged(mapping[key], value) for key, value in both.items()}
    return {**mapping, **changes, **inner}


def mark(config: CompareConfig, plan: Plan, job: Job, data: Path) -> str:
    """A digest of all that a job's result depends on: a result of other settings is none of this job."""
    fixed = dataclasses.replace(config, seeds=(), parts=())
    what = [fixed, job.partition, job.attack, job.attackers, job.rule.pooled, job.part.curve]
    settings = json.dumps([to_mapping(each) for each in what], default=str)
    return digest({"data": str(data.resolve()), "settings": settings, "plan": plan_of(plan, job).digest})
