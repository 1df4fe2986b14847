"""What a plan would cost in privacy here, from its first round to its last, before anything is approved."""

from __future__ import annotations

from dataclasses import replace

from client.budget import Standing, told
from client.dataset import Cache
from client.site import Site
from cxrbase_model.dpsgd import mechanism_of
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan
from cxrbase_model.privacy import Mechanism
from cxrbase_model.rows import labelled, labelled_share
from cxrbase_model.seeds import derive_seed


def mechanisms(plan: Plan, site: Site, cache: Cache) -> tuple[Mechanism, ...]:
    """One mechanism for each training stage of a plan with a guarantee, all its rounds in one; none for other plans.

    Each unit is in a step with the chance of batch size over the number of units.
    """
    if plan.privacy is None:
        return ()
    found = []
    for stage in plan.stages:
        if isinstance(stage, EvaluateStage):
            continue
        rows = cache.rows("train")
        if isinstance(stage, FinetuneStage):
            seed = derive_seed(plan.seed, "label-share", site.site)
            rows = labelled(cache, rows)
            rows = labelled_share(cache, rows, stage.label_fraction, seed) if len(rows) else rows
        if len(rows):
            once = mechanism_of(plan.privacy, cache.patients[rows], stage.batch_size, stage.local_epochs)
            found.append(replace(once, steps=stage.rounds * once.steps))
    return tuple(found)


def cost(plan: Plan, site: Site, cache: Cache, now: Standing) -> tuple[float, str]:
    """Epsilon after all rounds of a plan, and what it costs in words."""
    if plan.privacy is None:
        return now.after(), "no guarantee: from its first update on, no epsilon can be stated for this hospital"
    spends = mechanisms(plan, site, cache)
    after = now.after(*spends)
    alone = Standing(type(now.account)(), now.unit, now.delta, None, 0.0).after(*spends)
    text = f"all its rounds cost a {now.unit} epsilon {told(alone)}, {told(after)} with all before; a repeated round costs again"
    return after, text if now.budget is None else f"{text}; policy.epsilon allows {told(now.budget)}"
