"""Hospitals that hold updates of given numbers, and a server that asks them for the steps of secure aggregation as a test wants it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from client.app import answer
from client.secure import hold
from client.site import Site, read_site
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.secure.letters import (
    MASKED,
    SHARES,
    UNMASK,
    Opened,
    Roster,
    Survivors,
    advert_from_bytes,
    context_of,
    opened_from_bytes,
    parcels_from_bytes,
    parcels_to_bytes,
    roster_to_bytes,
    session_of,
    survivors_to_bytes,
)
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import State
from sim.tiny import write_tiny_hospital
from tests.server.hospitals import short_plan


def secure_plan(quorum: int = 3, weighting: str = "uniform", **secure: Any) -> Plan:
    whole = to_mapping(short_plan(quorum=quorum, weighting=weighting, deadline=60))
    return read(Plan, whole | {"aggregation": {"secure": {"threshold": 2, "hospitals": 10} | secure}})


@dataclass
class Consortium:
    """Hospitals and the letters that they have sent. Steps are asked for one by one."""

    sites: dict[str, Site]
    plan: Plan
    number: int = 1
    roster: Roster = field(default_factory=dict)
    parcels: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        return Task(
            "pretrain",
            "run",
            self.number,
            "mae",
            self.number,
            "mae",
            plan_to_text(self.plan),
            self.plan.digest,
            "weights",
        )

    @property
    def context(self) -> bytes:
        return context_of(self.plan.digest, "mae", self.number)

    @property
    def session(self) -> bytes:
        return session_of(self.context, self.roster)

    def train(self, updates: Mapping[str, State], examples: int = 100) -> None:
        self.roster, self.parcels = {}, {}
        for name, update in updates.items():
            letter = hold(self.task, self.sites[name], self.plan, update, examples=examples, loss=0.5)
            self.roster[name] = advert_from_bytes(letter)

    def step(self, name: str, kind: str, letter: bytes) -> Reply:
        return answer(replace(self.task, kind=kind, state=letter), self.sites[name])

    def done(self, name: str, kind: str, letter: bytes) -> bytes:
        reply = self.step(name, kind, letter)
        assert reply.code is None
        assert (reply.site, reply.kind, reply.examples, reply.loss) == (name, kind, 0, None)
        return reply.update

    def refused(self, name: str, kind: str, letter: bytes) -> bool:
        reply = self.step(name, kind, letter)
        assert not reply.update
        return reply.code is Code.SECURE

    def share(self, names: Collection[str] = ()) -> None:
        for name in names or self.roster:
            self.parcels[name] = parcels_from_bytes(self.done(name, SHARES, roster_to_bytes(self.roster)))

    def parcels_for(self, name: str, senders: Collection[str] = ()) -> bytes:
        return parcels_to_bytes(
            {other: self.parcels[other][name] for other in senders or self.parcels if other != name}
        )

    def masked(self, name: str, senders: Collection[str] = ()) -> bytes:
        return self.done(name, MASKED, self.parcels_for(name, senders))

    def opened(self, name: str, survivors: Collection[str]) -> Opened:
        return opened_from_bytes(self.done(name, UNMASK, named(survivors)))


def named(survivors: Collection[str], **signatures: bytes) -> bytes:
    return survivors_to_bytes(Survivors(frozenset(survivors), signatures))


def consortium(folder: Path, names: str = "abcd", plan: Plan | None = None) -> Consortium:
    the_plan = plan or secure_plan()
    sites = {name: read_site(write_tiny_hospital(folder / name, name, the_plan.data)) for name in names}
    return Consortium(sites, the_plan)


def constant(number: float, size: int = 1000) -> State:
    return {"w": torch.full((size,), float(number))}
