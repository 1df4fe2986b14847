"""May this task run here? Everything is checked before a picture is read; what is not known is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.approval import Approvals
from client.arrivals import BaseMissing, WrongWeights, arrived
from client.dataset import Cache
from client.site import Site
from cxrbase_model.codec import CodecError
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, balance_of, plan_from_text
from cxrbase_model.rows import training_rows
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State
from cxrbase_model.variates import divided

log = logging.getLogger("cxrbase.client")


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
    control: State = field(default_factory=dict)  # SCAFFOLD's variates of the server, by their parameters' names


def check_plan(task: Task) -> Plan:
    """The plan of a task, read with the hospital's own code; Refused where text and digest do not agree."""
    try:
        plan = plan_from_text(task.plan_text)
    except SettingsError:
        raise Refused(Code.PLAN_INVALID) from None
    if plan.digest != task.plan_digest:
        raise Refused(Code.PLAN_DIGEST)
    return plan


def check_task(task: Task, parameters: int, private: Path | None = None) -> Work:
    """Everything that can be checked about a training or evaluation task without touching the cache.

    parameters: the largest model that the hospital unpacks. private: where it keeps the weights for the next round, None for nowhere.
    """
    plan = check_plan(task)
    try:
        stage, model_stage = plan.stage(task.stage), plan.stage(task.model)
    except KeyError:
        raise Refused(Code.TASK_UNKNOWN) from None
    if stage.kind != task.kind or isinstance(model_stage, EvaluateStage):
        raise Refused(Code.TASK_UNKNOWN)
    if not isinstance(stage, EvaluateStage) and not 1 <= task.stage_round <= stage.rounds:
        raise Refused(Code.TASK_UNKNOWN)
    steered = plan.aggregation.scaffold and not isinstance(stage, EvaluateStage)
    try:
        state = arrived(task, plan.transport, 2 * parameters if steered else parameters, private)
    except CodecError:
        raise Refused(Code.STATE_INVALID) from None
    except WrongWeights:
        raise Refused(Code.STATE_DIGEST) from None
    except BaseMissing:
        raise Refused(Code.BASE_MISSING) from None
    weights, control = divided(state) if steered else (state, {})
    return Work(plan, stage, model_stage, weights, control)


def check_policy(plan: Plan, task: Task, site: Site, now: time.struct_time | None = None) -> None:
    """Refused where the hospital's policy does not allow the task; why is written to its own log and does not leave.

    now: local time, the present if None.
    """
    if why := objection(plan, task.stage, site, now):
        log.warning("round %d: %s", task.round, why)
        raise Refused(Code.POLICY)
    if site.policy.plans == "ask" and not Approvals(site.private).approved(plan):
        Approvals(site.private).ask(plan)
        log.warning(
            "round %d: plan %s is not approved; look at it with cxrbase-client plans SITE.yaml", task.round, plan.digest
        )
        raise Refused(Code.APPROVAL)


def objection(plan: Plan, stage_name: str, site: Site, now: time.struct_time | None = None) -> str:
    """What the policy has against a stage of a plan, empty where nothing; an unknown stage is a question about the plan."""
    policy, moment = site.policy, now or time.localtime()
    if policy.plans == "list" and plan.digest not in policy.digests:
        return f"policy.digests does not list plan {plan.digest}"
    stage = next((each for each in plan.stages if each.name == stage_name), None)
    if stage is None:
        return ""
    if stage.kind not in policy.stages:
        return f"policy.stages does not allow {stage.kind}"
    if not isinstance(stage, EvaluateStage) and stage.local_epochs > policy.local_epochs:
        return f"policy.local_epochs allows {policy.local_epochs:g}, stage {stage.name} wants {stage.local_epochs:g}"
    if against := _unprotected(plan, stage, site):
        return against
    if not policy.open_at(moment.tm_hour, moment.tm_min):
        return f"policy.hours does not allow {moment.tm_hour:02}:{moment.tm_min:02}"
    return ""


def _unprotected(plan: Plan, stage: PretrainStage | FinetuneStage | EvaluateStage, site: Site) -> str:
    """What the policy has against what a stage releases of single patients."""
    policy = site.policy
    if isinstance(stage, EvaluateStage):
        if policy.evaluations == "refuse" or (policy.evaluations == "unbudgeted" and policy.epsilon is not None):
            return f"policy.evaluations does not allow stage {stage.name}: what it measures has no epsilon"
        return ""
    if plan.privacy is None and policy.epsilon is not None:
        return f"policy.epsilon allows {policy.epsilon:g}, stage {stage.name} gives no guarantee"
    if plan.privacy is None and stage.batch_size < site.least_patients:
        return f"policy.patients asks for {site.least_patients}, a step of stage {stage.name} is of {stage.batch_size}"
    if (
        plan.privacy is not None
        and policy.epsilon is not None
        and (plan.privacy.unit, policy.unit)
        == (
            "picture",
            "patient",
        )
    ):
        return f"policy.unit is patient, stage {stage.name} gives a guarantee for single pictures only"
    return ""


def check_size(work: Work, site: Site) -> None:
    """Refused where the model is larger than the policy allows."""
    parameters = sum(tensor.numel() for tensor in work.state.values())
    if parameters > site.policy.parameters:
        log.warning("policy.parameters allows %d, the model has %d", site.policy.parameters, parameters)
        raise Refused(Code.POLICY)


def check_cohort(work: Work, site: Site, cache: Cache, rows: NDArray[np.int64], seed: int) -> None:
    """Refused where a result would be of too few patients, or of a model too large for so few pictures.

    rows: the rows of the cache that it may be of. seed: of the training, by which its batches are drawn.
    """
    stage = work.stage
    patients: Iterable[NDArray[np.int64]] = (cache.patients[rows],)
    if not isinstance(stage, EvaluateStage):
        parameters, most = sum(tensor.numel() for tensor in work.state.values()), site.policy.parameters_per_picture
        if most is not None and parameters > most * len(rows):
            log.warning("policy.parameters_per_picture allows %g, the model has %g", most, parameters / len(rows))
            raise Refused(Code.POLICY)
        if work.plan.privacy is None:  # under a guarantee, who is in a step is drawn by chance and hidden by noise
            drawn = training_rows(cache, rows, stage.batch_size, seed, stage.local_epochs, balance_of(stage))
            patients = (cache.patients[batch] for batch in drawn)
    seen: set[int] = set()
    for some in patients if len(np.unique(cache.patients[rows])) >= site.least_patients else ():
        seen.update(some.tolist())
        if len(seen) >= site.least_patients:
            return
    log.warning("policy.patients asks for %d; what stage %s would release is of fewer", site.least_patients, stage.name)
    raise Refused(Code.POLICY)
