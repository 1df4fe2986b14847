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
from cxrbase_model.specs import DataSpec, Federation, ModelSpec
from cxrbase_model.stages import (
    Augmentation,
    EvaluateStage,
    FinetuneStage,
    Loss,
    Optimizer,
    PretrainStage,
    Stage,
    Teacher,
    balance_of,
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
    "balance_of",
    "plan_from_text",
    "plan_to_text",
    "read_plan",
    "timeline",
]

SCHEMA = 1


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
        self.aggregation.check_packing(self.transport.update, self.federation.cosine)
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
        if self.data.image_size == self.model.patch_size:
            raise SettingsError(
                f"model.patch_size: expected less than data.image_size, for one patch leaves none to hide; found {self.model.patch_size}"
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
            if stage.name == "describe":
                raise SettingsError(
                    f"{where}.name: expected another name, since describe is that of the round in which hospitals tell what they have; "
                    f"found {stage.name!r}"
                )
            if isinstance(stage, EvaluateStage):
                _check_evaluate(stage, seen, where)
            else:
                _check_init(stage.init, seen, where)
            if isinstance(stage, PretrainStage) and stage.decode < 1 and self.model.decoder != "cross":
                raise SettingsError(f"{where}.decode: expected 1.0 where model.decoder is joint, found {stage.decode}")
            side = self.data.image_size // self.model.patch_size
            if isinstance(stage, FinetuneStage) and stage.pooling == "grid" and stage.grid > side:
                raise SettingsError(f"{where}.grid: expected at most {side}, the patches a side, found {stage.grid}")
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
    stages = [f"stage:{name}" for name in trained]
    if init != "previous" and init not in stages:
        expected = ["random", "previous", "timm:NAME", "file:PATH", *stages]
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
