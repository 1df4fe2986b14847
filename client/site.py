"""SITE.yaml: what a hospital says about itself. Its archive, its labels, its private folder and what it lets a training use.

Relative paths are relative to the file they are written in. The file never leaves the hospital; of all it says only `site`,
the public name, does.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from client.archive.pacs.settings import PacsArchive, resolved
from client.archive.settings import Archive, LabelSettings
from client.node.settings import DaemonSettings
from cxrbase_model.privacy import UNITS
from cxrbase_model.settings import SettingsError, knob, load_yaml, read

SCHEMA = 1

KINDS = ("pretrain", "finetune", "evaluate")

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Compute:
    """What a training may use of the hospital's machine."""

    device: str = knob("auto", why="auto, cpu, cuda or cuda:N")
    devices: int | None = knob(
        None, low=1, high=64,
        why="GPUs that share a training, all if none; with device: cpu, processes, one if none. Starting them takes seconds a round",
    )  # fmt: skip
    threads: int = knob(1, low=1, high=256, why="CPU threads of the training; results are equal only for equal numbers")
    micro_batch: int | None = knob(
        None,
        unit="pictures",
        low=1,
        high=65536,
        why="pictures that go through the model at once; a batch's all, halved on an out-of-memory",
    )
    compile: bool = knob(False, why="torch.compile; pays on a GPU after a minute")
    recompute: bool = knob(False, why="a third more work for most of the activations' memory")
    deterministic: bool = knob(False, why="the same bits each time on the same GPU, a little slower")
    workers: int = knob(2, low=1, high=256, unit="processes", why="processes that read the archive")

    def __post_init__(self) -> None:
        if self.device.startswith("cuda:") and (self.devices or 1) > 1:
            raise SettingsError(f"devices: expected 1 where device names one GPU, {self.device}; found {self.devices}")


@dataclass(frozen=True)
class Limits:
    """What one file may cost; a file that wants more is excluded, so that none can stop the ingest."""

    seconds: int = knob(60, unit="seconds", low=1, high=3600, why="longest time to read, decode and resize one file")
    memory: int = knob(2048, unit="MiB", low=128, high=1 << 20, why="memory for one file")
    file: int = knob(512, unit="MiB", low=1, high=1 << 20, why="largest file")


@dataclass(frozen=True)
class Policy:
    """What the hospital lets a training do, whoever asks; what is outside is refused before a picture is read."""

    stages: tuple[str, ...] = knob(KINDS, why=f"kinds of stages that may run here, of {', '.join(KINDS)}")
    local_epochs: float = knob(1000.0, unit="epochs", low=0.001, high=1000, why="most passes over the pictures a round")
    parameters: int = knob(
        1_000_000_000, unit="parameters", low=1, high=1 << 40, why="largest model that may be trained here"
    )
    epsilon: float | None = knob(
        None,
        low=0.0,
        why="budget for life: the largest epsilon that all trainings together may spend; one without a guarantee is refused",
    )
    delta: float = knob(
        1e-5, low=1e-15, high=0.01, why="chance that the guarantee fails; well below one over the number of patients"
    )
    unit: str = knob("patient", choices=UNITS, why="whose guarantee is asked for: a patient's, or at least a picture's")
    evaluations: str = knob(
        "unbudgeted",
        choices=("unbudgeted", "allow", "refuse"),
        why="measures of held-out patients have no epsilon: allowed where no budget is set, allowed, or refused",
    )
    patients: int | None = knob(
        None,
        unit="patients",
        low=1,
        high=1_000_000,
        why="fewest whose pictures a result may be of; minimum_cell if none",
    )
    parameters_per_picture: float | None = knob(
        None, low=1e-6, why="largest model, in parameters for each training picture; none for any"
    )
    witness: Path | None = knob(
        None, why="a file, best on another disk, in which the ledger's last line stands a second time"
    )
    hours: tuple[str, ...] = knob(
        (), why='local times of day at which tasks may begin, such as "19:00-07:00"; none given means any'
    )
    plans: str = knob(
        "ask",
        choices=("ask", "list", "any"),
        why="which plans may run: those approved with cxrbase-client plans, those of digests below, or any",
    )
    digests: tuple[str, ...] = knob((), why="digests of plans that may run, where plans is list")

    def __post_init__(self) -> None:
        for kind in self.stages:
            if kind not in KINDS:
                raise SettingsError(f"policy.stages: expected of {', '.join(KINDS)}, found {kind!r}")
        for span in self.hours:
            _minutes(span)

    def open_at(self, hour: int, minute: int) -> bool:
        """Whether tasks may begin at this time of day; a span such as 19:00-07:00 goes over midnight."""
        now = 60 * hour + minute
        spans = [_minutes(span) for span in self.hours]
        return not spans or any(
            start <= now < end if start <= end else now >= start or now < end for start, end in spans
        )


def _minutes(span: str) -> tuple[int, int]:
    """Both ends of a span of the day, minutes after midnight."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise SettingsError(f'policy.hours: expected spans such as "19:00-07:00", found {span!r}')
    hours, minutes, end_hours, end_minutes = (int(number) for number in found.groups())
    return 60 * hours + minutes, 60 * end_hours + end_minutes


@dataclass(frozen=True)
class Site:
    """A hospital's own settings; see the module's docstring."""

    schema: int = knob(why=f"version of the file's format; {SCHEMA} here", choices=(SCHEMA,))
    site: str = knob(why="the public name: letters, digits, - and _")
    archive: Archive = knob(why="where the pictures are")
    labels: LabelSettings = knob(factory=LabelSettings, why="how labels are written")
    rules: Path | None = knob(None, why="file of rules that override which pictures are used")
    private: Path = knob(
        Path("private"), why="folder of the cache, the manifest, the secret and the ledger; owner only"
    )
    minimum_cell: int = knob(5, low=1, high=1000, why="smallest count that may leave; smaller ones are put in a bucket")
    compute: Compute = knob(factory=Compute, why="what a training may use")
    limits: Limits = knob(factory=Limits, why="what one file may cost")
    policy: Policy = knob(factory=Policy, why="what a training may do here")
    daemon: DaemonSettings = knob(factory=DaemonSettings, why="how cxrbase-client start behaves")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.site):
            raise SettingsError(f"site: expected 1 to 64 letters, digits, - and _, found {self.site!r}")

    @property
    def least_patients(self) -> int:
        """The fewest patients whose pictures an update, a measure or a step may be of."""
        return self.minimum_cell if self.policy.patients is None else self.policy.patients

    @property
    def cache_folder(self) -> Path:
        """The folder of the training cache."""
        return self.private / "cache"


def read_site(path: Path) -> Site:
    """Read and check a SITE.yaml, its paths made absolute; SettingsError names the file, the dotted key and what would be right."""
    mapping = load_yaml(path)
    try:
        site = read(Site, mapping)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return resolve(site, path.resolve().parent)


def resolve(site: Site, home: Path) -> Site:
    """The same settings, every relative path below `home`."""
    labels = site.labels if site.labels.file is None else dataclasses.replace(site.labels, file=home / site.labels.file)
    archive = site.archive
    if isinstance(archive, PacsArchive):
        archive = resolved(archive, home)
    else:
        archive = dataclasses.replace(archive, path=home / archive.path)
    rules = None if site.rules is None else home / site.rules
    policy = site.policy
    if policy.witness is not None:
        policy = dataclasses.replace(policy, witness=home / policy.witness)
    return dataclasses.replace(
        site, archive=archive, labels=labels, rules=rules, policy=policy, private=home / site.private
    )
