"""A hospital's part in secure aggregation: it trains, holds its update, and lets it leave under masks alone.

train            -> advert of new keys                        hold
the steps        -> client/secure_steps.py
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from client.held import Held, Session
from client.outbox import Outbox
from client.peers import sign
from client.policy import Refused
from client.secure_steps import context, section
from client.site import Site
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import Plan
from cxrbase_model.secure.letters import STEPS, advert_to_bytes
from cxrbase_model.secure.ring import RingError, rings_of
from cxrbase_model.state import size

log = logging.getLogger("cxrbase.client")

_TRAINING = ("pretrain", "finetune")


class SecureOutbox(Outbox):
    """The answers of secured rounds: no update is kept as it leaves, and a training whose keys were used is answered with new ones."""

    def __init__(self, site: Site, task: Task, plan: Plan) -> None:
        self._site, self._task, self._plan = site, task, plan

    def find(self) -> Reply | None:
        """The answer to a training that was done before; None for steps, which are done anew from what is held."""
        if self._task.kind in STEPS:
            return None
        held = Held(self._site, self._task)
        session = held.trained()
        if session is None:
            return None
        if session.roster:
            session = held.keep(_signed(session.renewed(), self._site, self._task))
        return Reply(**session.reply, update=advert_to_bytes(session.advert))

    def keep(self, reply: Reply) -> None:
        """Note the fields of a training's answer; OSError on a full disk, since the masks depend on what is held."""
        held = Held(self._site, self._task)
        if self._task.kind not in STEPS and (session := held.session()) is not None:
            held.keep(session, reply)


def outbox(site: Site, task: Task, plan: Plan) -> Outbox:
    """Where the answer to a task is kept."""
    secure = task.kind in STEPS or (plan.aggregation.secure is not None and task.kind in _TRAINING)
    return SecureOutbox(site, task, plan) if secure else Outbox(site, task)


def hold(
    task: Task, site: Site, plan: Plan, update: Mapping[str, Tensor], *, examples: int, loss: float, short: float = 0.0
) -> bytes:
    """Hold an update, clipped and noised where the plan says so; returns the letter that leaves instead. Refused with SPAN where it is too large.

    short: as in `Rings.encode`.
    """
    secure = section(plan)
    share = 1.0 if plan.federation.weighting == "uniform" else min(examples, secure.examples) / secure.examples
    try:
        data = rings_of(plan, task.clip).encode(update, share, loss, short)
    except RingError as error:
        log.warning("round %d: %s", task.round, error)
        raise Refused(Code.SPAN) from None
    held = Held(site, task)
    session = held.keep(_signed(held.begin(data, size(update)), site, task))
    return advert_to_bytes(session.advert)


def _signed(session: Session, site: Site, task: Task) -> Session:
    return replace(session, signature=sign(site, session.advert.signed_text(site.site, context(task))).hex())
