"""One round of each stage of a plan on the hospital's own cache and device, with nothing sent."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from client.app import perform
from client.arrivals import HeldWeights
from client.budget import rehearsal
from client.feedback import Residual
from client.held import Held
from client.kept import Kept
from client.mixing import Mixing
from client.moments import Moments
from client.own import Own
from client.policy import Refused, objection
from client.release import without_guarantee
from client.site import Site
from client.variates import Variates
from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import sent
from cxrbase_model.features import build_objective
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage, Stage, plan_to_text
from cxrbase_model.state import digest, state_of
from cxrbase_model.variates import controlled, prefixed

_RUN = "rehearsal"


@dataclass(frozen=True)
class Rehearsed:
    """How one round of a stage went: what would leave, seconds, the device's peak memory, and the policy's objection, if any.

    reply: None where the hospital cannot do the task, with the code that would leave instead. memory: bytes, of the GPU
    where there is one, else of the process since it started; None where several processes share a training on GPUs.
    """

    stage: Stage
    reply: Reply | None
    code: Code | None
    seconds: float
    memory: int | None
    objection: str


def rehearse(plan: Plan, site: Site) -> Iterator[Rehearsed]:
    """The first round of each stage from weights that nobody has trained; policy does not stop it, and it leaves no trace."""
    for stage in plan.stages:
        task = _task(plan, stage)
        if task is None:
            continue
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        reply, code = None, None
        try:
            with rehearsal():  # nothing leaves, so no privacy is spent
                reply = without_guarantee(perform(task, site), plan)
        except Refused as refused:
            code = refused.code
        finally:
            for kept in _kept(site, task, plan):
                kept.drop()
            HeldWeights(site.private).drop()  # the next weights come whole
        yield Rehearsed(
            stage, reply, code, time.monotonic() - started, _memory(site), objection(plan, stage.name, site)
        )


def _kept(site: Site, task: Task, plan: Plan) -> tuple[Kept | Held, ...]:
    """What a task has left for a next round that does not come."""
    mixing = Mixing(site.private, task, plan.aggregation.mixing)
    variates = Variates(site.private, task, {})
    own = Own(site.private, task)
    return Moments(site.private, task), Residual(site.private, task), own, mixing, variates, Held(site, task)


def _task(plan: Plan, stage: Stage) -> Task | None:
    if isinstance(stage, PretrainStage):
        model_stage: PretrainStage | FinetuneStage = stage
        model: nn.Module = build_objective(plan, stage)
    else:
        earlier = [each for each in plan.stages if isinstance(each, FinetuneStage)]
        if isinstance(stage, FinetuneStage):
            model_stage = stage
        elif earlier:
            model_stage = next((each for each in earlier if each.name in stage.of), earlier[0])
        else:
            return None
        model = build_classifier(plan, model_stage)
    state = state_of(model)
    if plan.aggregation.scaffold and stage is model_stage:
        state |= prefixed(controlled(model, plan.aggregation))
    privacy = plan.aggregation.privacy
    packed, arrives = sent(state, plan.transport.down(stage.kind))
    return Task(
        stage.kind,
        _RUN,
        1,
        stage.name,
        1,
        model_stage.name,
        plan_to_text(plan),
        plan.digest,
        digest(arrives),
        packed,
        clip=privacy.clip if privacy is not None else None,
    )


def _memory(site: Site) -> int | None:
    if torch.cuda.is_available():
        several = site.compute.devices or torch.cuda.device_count()
        return int(torch.cuda.max_memory_allocated()) if several == 1 else None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else 1024 * peak
