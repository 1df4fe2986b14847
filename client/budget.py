"""The hospital's privacy budget: nothing trains under a plan with a guarantee before its cost is in the ledger."""

from __future__ import annotations

from client.ledger import Ledger, OverBudget, Release
from client.policy import Refused
from client.site import Site
from cxrbase_model.messages import Code, Task
from cxrbase_model.privacy import Mechanism

_DELTA = 1e-5


def reserve(site: Site, task: Task, mechanism: Mechanism) -> None:
    """Spend a training's privacy before it begins; Refused(BUDGET) where that would go beyond the policy's epsilon."""
    release = Release(task.run, task.stage, task.round, mechanism.noise, mechanism.rate, mechanism.steps)
    budget = float("inf") if site.policy.epsilon is None else site.policy.epsilon
    try:
        Ledger(site.private).reserve(release, budget, _DELTA)
    except OverBudget:
        raise Refused(Code.BUDGET) from None
