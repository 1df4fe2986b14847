"""May this task run here? Everything is checked before a picture is read; what is not known is refused."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.codec import CodecError, unpack
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, plan_from_text
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, digest


class Refused(Exception):
    """The hospital does not do the task; the code is all that leaves."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True)
class Work:
    """A task that passed: its plan, the stage it belongs to, the stage whose model it carries, and the weights."""

    plan: Plan
    stage: PretrainStage | FinetuneStage | EvaluateStage
    model_stage: PretrainStage | FinetuneStage
    state: State


def check_plan(task: Task) -> Plan:
    """The plan of a task, read with the hospital's own code; Refused where text and digest do not agree."""
    try:
        plan = plan_from_text(task.plan_text)
    except SettingsError:
        raise Refused(Code.PLAN_INVALID) from None
    if plan.digest != task.plan_digest:
        raise Refused(Code.PLAN_DIGEST)
    return plan


def check_task(task: Task) -> Work:
    """Everything that can be checked about a training or evaluation task without touching the cache."""
    plan = check_plan(task)
    try:
        stage, model_stage = plan.stage(task.stage), plan.stage(task.model)
    except KeyError:
        raise Refused(Code.TASK_UNKNOWN) from None
    if stage.kind != task.kind or isinstance(model_stage, EvaluateStage):
        raise Refused(Code.TASK_UNKNOWN)
    if not isinstance(stage, EvaluateStage) and not 1 <= task.stage_round <= stage.rounds:
        raise Refused(Code.TASK_UNKNOWN)
    try:
        state = unpack(task.state)
    except CodecError:
        raise Refused(Code.STATE_INVALID) from None
    if digest(state) != task.state_digest:
        raise Refused(Code.STATE_DIGEST)
    return Work(plan, stage, model_stage, state)
