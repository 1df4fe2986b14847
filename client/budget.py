"""The hospital's privacy budget: nothing trains under a plan with a guarantee before its cost is in the ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from client.accounting import ACCOUNTANT, Account
from client.ledger import Entry, Ledger
from client.membership import membership
from client.policy import Refused
from client.site import Site
from cxrbase_model.messages import Code, Task
from cxrbase_model.privacy import Mechanism
from cxrbase_model.settings import SettingsError

log = logging.getLogger("cxrbase.client")

_LONGEST = 80  # characters of a name that the server chose
_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@dataclass(frozen=True)
class Standing:
    """Where a hospital stands: the account of its ledger, with epsilon spent for the policy's unit, the budget and what is left."""

    account: Account
    unit: str
    delta: float
    budget: float | None
    spent: float

    @property
    def left(self) -> float | None:
        """What is left of the budget, None where none is set."""
        return None if self.budget is None else max(0.0, self.budget - self.spent)

    def after(self, *mechanisms: Mechanism) -> float:
        """Epsilon after some more trainings."""
        return self.account.plus(*mechanisms).epsilon(self.unit, self.delta)


def ledger_of(site: Site) -> Ledger:
    """A hospital's ledger."""
    return Ledger(site.private, site.policy.witness)


def standing(site: Site) -> Standing:
    """Where a hospital stands now; LedgerError where its ledger was altered."""
    account, policy = Account.of(ledger_of(site).entries()), site.policy
    return Standing(account, policy.unit, policy.delta, policy.epsilon, account.epsilon(policy.unit, policy.delta))


def reserve(site: Site, task: Task, mechanism: Mechanism) -> None:
    """Spend a training's privacy before it begins; Refused(BUDGET) where that would go beyond the policy's epsilon.

    It is spent from then on, whatever becomes of the training. In a rehearsal, from which nothing leaves, nothing is spent.
    """
    if rehearses():
        return
    policy = site.policy

    def line(entries: list[Entry]) -> Entry:
        account = Account.of(entries)
        before = account.epsilon(policy.unit, policy.delta)
        after = account.plus(mechanism).epsilon(policy.unit, policy.delta)
        if policy.epsilon is not None and not after <= policy.epsilon:
            log.warning(
                "round %d: policy.epsilon allows %g for a %s; %s is spent, %s would be",
                task.round, policy.epsilon, policy.unit, told(before), told(after),
            )  # fmt: skip
            raise Refused(Code.BUDGET)
        return replace(
            line_of(site, task, "reserve"), unit=mechanism.unit, noise=mechanism.noise, rate=mechanism.rate,
            steps=mechanism.steps, accountant=ACCOUNTANT, epsilon_of=policy.unit, delta=policy.delta,
            before=before, after=after,
        )  # fmt: skip

    ledger_of(site).add(line)


def line_of(site: Site, task: Task, kind: str) -> Entry:
    """A line about a task: to whom, of which run, stage, round and plan."""
    return Entry(
        kind, recipient=recipient(site), run=task.run[:_LONGEST], stage=task.stage[:_LONGEST], round=task.round,
        plan=task.plan_digest[:_LONGEST],
    )  # fmt: skip


def recipient(site: Site) -> str:
    """To whom everything goes: the consortium that the hospital has joined, by name and its authority's fingerprint; empty for none."""
    try:
        member = membership(site)
    except SettingsError:
        return ""
    return f"{member.kit.consortium} ({member.fingerprint})"


@contextmanager
def rehearsal() -> Iterator[None]:
    """Let reservations cost nothing: only for what does not leave this machine."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def rehearses() -> bool:
    """Whether what goes on is a rehearsal, which must leave alone what real rounds go on from."""
    return _rehearsing.get()


def told_left(value: float) -> str:
    """What is left of a budget, in words; never more than it is."""
    return f"{math.floor(value * 100 + 1e-9) / 100:.2f}"


def told(value: float) -> str:
    """Epsilon in words; never less than it is."""
    return "no limit" if value == math.inf else f"{math.ceil(value * 100 - 1e-9) / 100:.2f}"
