"""Hospital-level privacy on the hospital's side (aggregation.privacy): no update leaves that is longer than the plan says.

The server's word does not count for it: the bound of a task has to be the plan's, and where the plan has hospitals add the noise, this
one's share is in the update before it is packed, from the operating system's generator, which nobody can seed.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from client.policy import Refused
from cxrbase_model.clipping import MARGIN, clip_, is_short
from cxrbase_model.messages import Code, Task
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import Plan
from cxrbase_model.protection import TAILS, HospitalPrivacy
from cxrbase_model.state import State, is_finite


def protect(update: State, plan: Plan, task: Task, names: Collection[str]) -> State:
    """The update that may leave: clipped, with this hospital's share of the noise; as it is where the plan has no aggregation.privacy.

    The memory of `update` is used. names: the tensors that the stage shares (`clipping.protected_names`). Refused with CLIP where the task's bound is not the plan's,
    NOT_FINITE where a number of the update is none.
    """
    privacy = plan.aggregation.privacy
    if privacy is None:
        return update
    clip = _bound(privacy, task)
    if not is_finite(update):
        raise Refused(Code.NOT_FINITE)
    clip_(update, clip, names, MARGIN + _coarseness(plan, sum(update[name].numel() for name in names)))
    share = privacy.share(plan.federation.quorum) * clip
    if share:
        source = NoiseSource()
        for name in sorted(names):
            tensor = update[name]
            tensor += source.normal(tensor.numel()).mul_(share).reshape(tensor.shape)  # rounded once, to float32
    return update


def shortness(update: State, plan: Plan, task: Task, names: Collection[str]) -> float:
    """This hospital's part of the count of short updates: half for one that was not clipped, else minus half, and its share of the noise.

    0 where the clip is fixed. It may leave under secure aggregation alone, where nobody sees it but in a sum.
    """
    privacy = plan.aggregation.privacy
    if privacy is None or privacy.adaptive is None:
        return 0.0
    part = 0.5 if is_short(update, _bound(privacy, task), names) else -0.5
    share = privacy.count_share(plan.federation.quorum)
    return part + share * float(NoiseSource().normal(1)) if share else part


def _coarseness(plan: Plan, numbers: int) -> float:
    """How much longer, in clips, rounding to the steps of secure aggregation can make an update. Refused with SPAN where that is all of it."""
    secure, privacy = plan.aggregation.secure, plan.aggregation.privacy
    if secure is None or privacy is None:
        return 0.0
    span: float = 1 + TAILS * privacy.share(plan.federation.quorum)
    added: float = math.sqrt(numbers) * secure.hospitals * span / 2**secure.bits  # half a step for each number
    if added >= 0.5:
        raise Refused(Code.SPAN)
    return added


def _bound(privacy: HospitalPrivacy, task: Task) -> float:
    """The clip of a task; an adaptive one may be any positive number, since its noise is a multiple of it."""
    clip = task.clip
    if clip is None or not 0 < clip < math.inf or (privacy.adaptive is None and clip != privacy.clip):
        raise Refused(Code.CLIP)
    return float(clip)
