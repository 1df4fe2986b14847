"""The training plan: everything a consortium and its hospitals must agree on before a round starts.

A plan is YAML, an ordered list of stages over one model and one data specification, read into frozen dataclasses. It travels to
the hospitals whole, as its canonical text; its SHA-256 digest names it in every task, reply, checkpoint and report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.privacy import Privacy, check_stages
from cxrbase_model.protection import check_privacy, check_secure
from cxrbase_model.settings import SettingsError, canonical, digest, knob, load_yaml, read
from cxrbase_model.stages import (
    Augmentation,
    EvaluateStage,
    FinetuneStage,
    Loss,
    Optimizer,
    PretrainStage,
    Stage,
    Teacher,
)
from cxrbase_model.transport import Transport

__all__ = [
    "Augmentation",
    "DataSpec",
    "EvaluateStage",
    "Federation",
    "FinetuneStage",
    "Loss",
    "ModelSpec",
    "Optimizer",
    "Plan",
    "PretrainStage",
    "Privacy",
    "Round",
    "Stage",
    "Teacher",
    "plan_from_text",
    "plan_to_text",
    "read_plan",
    "timeline",
]

SCHEMA = 1

ENCODERS: dict[str, tuple[int, int, int]] = {  # timm's names without patch and size: width, depth, heads
    "vit_micro": (128, 6, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


@dataclass(frozen=True)
class DataSpec:
    """How each hospital turns its archive into pixels, labels and splits; a cache built to another one is refused."""

    findings: tuple[str, ...] = knob(why="the label vocabulary, in the order of the classifier's outputs")
    image_size: int = knob(224, unit="pixels", low=16, high=2048, why="side of the square picture the model sees")
    aspect: str = knob(
        "pad",
        choices=("pad", "crop", "shortest", "stretch"),
        why="pad to a square; crop the centre square and resize it; resize the shortest side and crop; or stretch",
    )
    remove_borders: bool = knob(False, why="cut away black collimation borders before resizing")
    intensity: str = knob(
        "as-is", choices=("as-is", "equalize"),
        why="grey values as the archive shows them, or equalised: each level as often as any other, whatever the scanner's window",
    )  # fmt: skip
    validation: float = knob(0.1, low=0.0, high=0.5, why="share of the patients kept for choosing the model")
    test: float = knob(0.2, low=0.0, high=0.5, why="share of the patients kept for the one final test")
    uncertain: str = knob(
        "ignore", choices=("ignore", "zeros", "ones", "soft"), why="what an uncertain label counts as; soft is 0.5"
    )

    def __post_init__(self) -> None:
        if not self.findings:
            raise SettingsError("findings: expected at least one finding, found none")
        if len(set(self.findings)) != len(self.findings):
            raise SettingsError(f"findings: expected each finding once, found {list(self.findings)}")


@dataclass(frozen=True)
class ModelSpec:
    """The encoder and the light decoder it is pretrained with."""

    encoder: str = knob("vit_small", choices=tuple(ENCODERS), why="width, depth and heads of the ViT encoder")
    patch_size: int = knob(16, unit="pixels", low=2, high=64, why="side of a square patch; smaller sees finer detail")
    depth: int | None = knob(None, low=1, high=48, why="number of encoder blocks, where it is not the encoder's own")
    positions: str = knob(
        "fixed", choices=("fixed", "learned"), why="sines and cosines, or learned from those: wanted by foreign weights"
    )
    decoder: str = knob(
        "joint", choices=("joint", "cross"),
        why="hidden patches look at all others, or at the visible ones alone (CrossMAE, arXiv 2401.14391), which is cheaper",
    )  # fmt: skip
    decoder_width: int = knob(512, low=32, high=2048, why="embedding width of the decoder")
    decoder_depth: int = knob(2, low=1, high=16, why="decoder blocks; two suffice for radiographs (medical_mae)")
    decoder_heads: int = knob(8, low=1, high=32, why="attention heads of the decoder")

    def __post_init__(self) -> None:
        if self.decoder_width % self.decoder_heads:
            raise SettingsError(
                f"decoder_heads: expected a divisor of decoder_width {self.decoder_width}, found {self.decoder_heads}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of the encoder."""
        width, depth, heads = ENCODERS[self.encoder]
        return width, self.depth or depth, heads


@dataclass(frozen=True)
class Federation:
    """How hospitals are chosen, waited for, weighed and checked."""

    fraction: float = knob(1.0, low=0.001, high=1.0, why="share of the available hospitals asked in a round")
    quorum: int = knob(2, unit="hospitals", low=1, high=10_000, why="fewest admitted replies that make a round count")
    deadline: float = knob(3600.0, unit="seconds", low=1.0, high=604_800.0, why="longest wait for replies of a round")
    join_deadline: float = knob(
        600.0, unit="seconds", low=1.0, high=604_800.0, why="longest wait for the quorum to appear"
    )
    absence: float = knob(
        900.0, unit="seconds", low=0.0, high=604_800.0,
        why="longest wait for a hospital that has lost the connection, once the quorum is there",
    )  # fmt: skip
    repeats: int = knob(2, low=0, high=100, why="how often a round without quorum is repeated before the run stops")
    weighting: str = knob("examples", choices=("examples", "uniform"), why="weigh updates by examples, or all alike")
    max_update_norm: float | None = knob(
        None, low=0.0, why="largest admitted Euclidean norm of an update; none means that any finite one is admitted"
    )
    outlier: float | None = knob(
        None, low=1.0, why="largest admitted norm, as a multiple of the median of the stage's last rounds; none for any"
    )
    longest: float | None = knob(
        None, low=1.0,
        why="largest norm that counts, as a multiple of the median of the same round's updates, its first round included; none for any",
    )  # fmt: skip
    shortest: float | None = knob(
        None, low=1e-6, high=1.0,
        why="smallest norm that counts, as a share of that median, against who trains nothing; none for any, since few pictures "
        "honestly make a short update",
    )  # fmt: skip
    cosine: float | None = knob(
        None, low=-1.0, high=1.0,
        why="smallest cosine that counts of an update to the usual direction of the others of its round; none for any, since hospitals "
        "whose labels differ honestly pull apart",
    )  # fmt: skip
    claimed_examples: float | None = knob(
        2.0, low=1.0,
        why="most examples that a reply may claim, as a multiple of what the described pictures allow; none for any",
    )  # fmt: skip
    keep_checkpoints: int = knob(3, low=1, high=10_000, why="committed rounds whose weights stay on disk")

    def __post_init__(self) -> None:
        if self.compares and self.quorum < 3:
            raise SettingsError(
                f"quorum: expected at least 3 where longest, shortest or cosine is set, since of two nobody is unlike; found {self.quorum}"
            )

    @property
    def compares(self) -> bool:
        """Whether the updates of a round are held against each other before they count."""
        return any(limit is not None for limit in (self.longest, self.shortest, self.cosine))


@dataclass(frozen=True)
class Plan:
    """One training plan; see the module's docstring."""

    schema: int = knob(why=f"version of the plan's format; {SCHEMA} here", choices=(SCHEMA,))
    name: str = knob(why="names the run in reports")
    data: DataSpec = knob(why="pictures, labels and splits")
    stages: tuple[Stage, ...] = knob(why="what is trained and tested, in order")
    seed: int = knob(0, low=0, high=2**31 - 1, why="seed of every generator but privacy noise")
    precision: str = knob("float32", choices=("float32", "bf16"), why="arithmetic of the local training (autocast)")
    model: ModelSpec = knob(factory=ModelSpec, why="the network")
    federation: Federation = knob(factory=Federation, why="the round")
    transport: Transport = knob(factory=Transport, why="bytes against exactness on the wire")
    aggregation: Aggregation = knob(factory=Aggregation, why="how updates become one step of the model")
    privacy: Privacy | None = knob(None, why="differential privacy of patients or pictures; none promises nothing")

    def __post_init__(self) -> None:
        if self.transport.update == "auto":  # what is asked for is written out, so that a digest says all
            update = "float32" if self.aggregation.is_exact else "int8"
            object.__setattr__(self, "transport", replace(self.transport, update=update))
        self._check_model()
        self._check_stages()
        check_stages(self.privacy, self.stages)
        self.aggregation.check_quorum(self.federation.quorum)
        self._check_protection()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical text, 64 hexadecimal digits."""
        return digest(self)

    def stage(self, name: str) -> Stage:
        """The stage of that name; KeyError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def source(self, stage: PretrainStage | FinetuneStage) -> str | None:
        """The stage whose final weights a stage starts from; None where it starts from elsewhere."""
        if stage.init.startswith("stage:"):
            return stage.init.removeprefix("stage:")
        earlier = [each.name for each in self.stages[: self.stages.index(stage)] if not isinstance(each, EvaluateStage)]
        return earlier[-1] if stage.init == "previous" else None

    def _check_model(self) -> None:
        if self.data.image_size % self.model.patch_size:
            raise SettingsError(
                f"model.patch_size: expected a divisor of data.image_size {self.data.image_size}, "
                f"found {self.model.patch_size}"
            )

    def _check_protection(self) -> None:
        aggregation, federation = self.aggregation, self.federation
        aggregation.check_scaffold(federation.weighting, self.transport.update)
        if aggregation.scaffold and self.privacy is not None:
            raise SettingsError(
                "aggregation.scaffold: expected false under privacy, whose noise the variates would learn, found true"
            )
        if aggregation.scaffold and federation.cosine is not None:
            raise SettingsError(
                f"federation.cosine: expected none where aggregation.scaffold is true, whose variates travel with updates; found {federation.cosine:g}"
            )
        bounds = {
            f"federation.{key}": getattr(federation, key)
            for key in ("max_update_norm", "outlier", "longest", "shortest", "cosine")
        }
        if aggregation.secure is not None:
            check_secure(aggregation.secure, aggregation.rule.kind, federation.quorum, self.transport.update, bounds)
        if aggregation.privacy is not None:
            check_privacy(
                aggregation.privacy, aggregation.rule.kind, federation.weighting, self.transport.update,
                federation.quorum, bounds, secure=aggregation.secure,
            )  # fmt: skip

    def _check_stages(self) -> None:
        if not self.stages:
            raise SettingsError("stages: expected at least one stage, found none")
        seen: dict[str, Stage] = {}
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}]"
            if stage.name in seen or not stage.name.replace("-", "").replace("_", "").isalnum():
                raise SettingsError(
                    f"{where}.name: expected a new name of letters, digits, - and _; found {stage.name!r}"
                )
            if isinstance(stage, EvaluateStage):
                _check_evaluate(stage, seen, where)
            else:
                _check_init(stage.init, seen, where)
            if isinstance(stage, PretrainStage) and stage.decode < 1 and self.model.decoder != "cross":
                raise SettingsError(f"{where}.decode: expected 1.0 where model.decoder is joint, found {stage.decode}")
            seen[stage.name] = stage


def _check_evaluate(stage: EvaluateStage, seen: dict[str, Stage], where: str) -> None:
    candidates = [name for name, earlier in seen.items() if isinstance(earlier, FinetuneStage)]
    for name in stage.of:
        if name not in candidates:
            raise SettingsError(
                f"{where}.of: expected earlier fine-tuning stages ({', '.join(candidates) or 'none yet'}); found {name!r}"
            )
    if not candidates:
        raise SettingsError(f"{where}.of: expected a fine-tuning stage before an evaluation, found none")


def _check_init(init: str, seen: dict[str, Stage], where: str) -> None:
    trained = [name for name, earlier in seen.items() if not isinstance(earlier, EvaluateStage)]
    if init == "random" or init.startswith(("file:", "timm:")):
        return
    if init == "previous" and not trained:
        raise SettingsError(
            f"{where}.init: expected random, timm:NAME or file:PATH in the first stage, found 'previous'"
        )
    if init != "previous" and init.removeprefix("stage:") not in trained:
        expected = ["random", "previous", "timm:NAME", "file:PATH", *(f"stage:{name}" for name in trained)]
        raise SettingsError(f"{where}.init: expected one of {', '.join(expected)}; found {init!r}")


def read_plan(path: Path) -> Plan:
    """Read and check a plan file; SettingsError names the file, the dotted key, the value and what would be right."""
    mapping = load_yaml(path)
    try:
        return read(Plan, mapping)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def plan_from_text(text: str) -> Plan:
    """The plan of a canonical text, as it came over the wire; SettingsError where it is none."""
    try:
        return read(Plan, json.loads(text))
    except json.JSONDecodeError:
        raise SettingsError("plan: expected canonical JSON text") from None


def plan_to_text(plan: Plan) -> str:
    """The canonical text that travels and whose SHA-256 is the plan's digest."""
    return canonical(plan)


@dataclass(frozen=True)
class Round:
    """One line of a plan's timeline; `number` counts from 1 over the whole run, `stage_round` from 1 within the stage."""

    number: int
    stage: Stage
    stage_round: int
    stage_rounds: int
    model_of: str  # the stage whose model is trained or evaluated in this round


def timeline(plan: Plan) -> tuple[Round, ...]:
    """Every round of a plan in order; an evaluation has one round for each model it evaluates."""
    rounds: list[Round] = []
    finetuned: list[str] = []
    for stage in plan.stages:
        models = list(stage.of or finetuned) if isinstance(stage, EvaluateStage) else [stage.name] * stage.rounds
        if isinstance(stage, FinetuneStage):
            finetuned.append(stage.name)
        for index, model_of in enumerate(models):
            rounds.append(Round(len(rounds) + 1, stage, index + 1, len(models), model_of))
    return tuple(rounds)
