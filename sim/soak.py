"""A long run of a consortium whose lines drop and machines crash all the time, after what happened to real ones.

MediSwarm (KatherLab/MediSwarm issues 346 to 348): runs of 20 rounds that ended at round 7 after 15 hours because of one VPN drop of six
minutes, and at round 10 after 17.5 hours because one node had failed, with the newest model on it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from cxrbase_model.plan import Plan
from cxrbase_model.seeds import derive_seed
from sim.deployment import EXECUTOR, SERVERAPP, SUPERLINK, SUPERNODE, Daemon, Deployment
from sim.faults import fault_plan, kill, make_sites, outage, power_cut
from sim.tiny import write_tiny_hospital

HOSPITALS = ("aspen", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple")
NEWCOMER = "oak"

_DROPS = (3.0, 10.0, 30.0, 75.0)  # seconds that a line is down; a round takes about fifteen
_BETWEEN = 5  # rounds until something happens to the same hospital again: one thing at a time
_QUIET = 4  # rounds at the end in which nothing more happens, so that everybody can be back
_WARM = 6  # rounds after which memory has to be level


@dataclass(frozen=True)
class Event:
    """Something that happens to a hospital when a round is committed."""

    round: int
    hospital: str
    what: str
    happen: Callable[[Deployment], None]


@dataclass
class Soaked:
    """How a soak went. memory: MB that each long-lived process held alone after each round it was seen at, by name."""

    rounds: int = 0
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)
    admitted: dict[str, list[int]] = field(default_factory=dict)  # hospital to the rounds that it took part in
    attempts: list[int] = field(default_factory=list)
    memory: dict[str, dict[int, float]] = field(default_factory=dict)
    gone: str = ""

    def locked_out(self) -> list[str]:
        """The hospitals that took part in no round after the last thing that happened to them, but for the one that is gone."""
        last = dict.fromkeys((*HOSPITALS, NEWCOMER), 0) | {event.hospital: event.round for event in self.events}
        return [
            name
            for name, number in last.items()
            if name != self.gone and max(self.admitted.get(name, []), default=0) <= number
        ]

    def growth(self, name: str) -> float | None:
        """MB that a process has grown by from its first warm rounds to its last ones; None where it did not live that long."""
        warm = [size for number, size in sorted(self.memory[name].items()) if number >= _WARM]
        return fmean(warm[-3:]) - fmean(warm[:3]) if len(warm) >= 2 * _WARM else None


def soak_plan(rounds: int) -> Plan:
    """Short rounds of eight hospitals, of which five suffice, and a short patience with those that are away."""
    plan = fault_plan(rounds, local_epochs=1)
    return replace(plan, name="soak", federation=replace(plan.federation, quorum=5, absence=20.0, deadline=180.0))


def schedule(rounds: int, seed: int) -> list[Event]:
    """What happens when: the same seed gives the same events. One hospital is gone for good after a third, one is new after a half."""
    rng = random.Random(derive_seed(seed, "soak"))
    gone, events, spared = rng.choice(HOSPITALS), [], dict.fromkeys(HOSPITALS, 0)
    for number in range(1, rounds - _QUIET):
        ready = [name for name in HOSPITALS if name != gone and spared[name] < number]
        for name in rng.sample(ready, min(len(ready), rng.choice((0, 1, 1, 2)))):
            events.append(_random_event(number, name, rng))
            spared[name] = number + _BETWEEN
    events.append(Event(rounds // 3, gone, "gone for good", lambda deployment: _gone(deployment, gone)))
    events.append(Event(rounds // 2, NEWCOMER, "joins", _join))
    return sorted(events, key=lambda event: event.round)


def run_soak(folder: Path, rounds: int = 30, seed: int = 0, tell: Callable[[str], None] = lambda text: None) -> Soaked:
    """Run the schedule against a consortium in `folder`; DeploymentFailed where a round is never committed."""
    plan, events = soak_plan(rounds), schedule(rounds, seed)
    result = Soaked(rounds=rounds, events=events, gone=next(e.hospital for e in events if e.what == "gone for good"))
    began = time.monotonic()
    with Deployment(folder, plan, make_sites(folder / "sites", plan, HOSPITALS)) as deployment:
        deployment.start()
        deployment.wait_for_round(0)
        for number in range(1, rounds + 1):
            happening = [event for event in events if event.round == number]
            for event in happening:
                tell(f"round {number}: {event.hospital}: {event.what}")
                threading.Thread(target=event.happen, args=(deployment,), daemon=True).start()
            deployment.wait_for_round(number, 600)
            _weigh(deployment, number, result)
            _count(deployment, result)
            tell(f"round {number} committed, {len(deployment.records()[-1]['hospitals'])} hospitals asked")
        assert deployment.finish() == 0, deployment.told()
    result.seconds = time.monotonic() - began
    return result


def _random_event(number: int, name: str, rng: random.Random) -> Event:
    kind = rng.random()
    if kind < 0.55:
        seconds = rng.choice(_DROPS)
        return Event(number, name, f"line down for {seconds:.0f} s", outage(name, seconds))
    if kind < 0.7:
        return Event(number, name, "line stalled for 45 s", outage(name, 45.0, stalled=True))
    if kind < 0.85:
        return Event(number, name, "SuperNode killed", kill(SUPERNODE, name))
    seconds = rng.choice((2.0, 40.0))
    return Event(number, name, f"power cut, back after {seconds:.0f} s", power_cut(name, seconds))


def _gone(deployment: Deployment, name: str) -> None:
    deployment.hospitals[name].daemon.kill_all()


def _join(deployment: Deployment) -> None:
    site = write_tiny_hospital(deployment.folder / "sites" / NEWCOMER, NEWCOMER, deployment.plan.data)
    deployment.add(NEWCOMER, site).daemon.start()


def _weigh(deployment: Deployment, number: int, result: Soaked) -> None:
    """Note what every long-lived process holds; one that was started anew is another process."""
    for kind, label in ((SUPERLINK, "SuperLink"), (SERVERAPP, "ServerApp")):
        _note(deployment.operator, kind, label, number, result)
    for name, hospital in deployment.hospitals.items():
        for kind, label in ((SUPERNODE, "SuperNode"), (EXECUTOR, "executor")):
            _note(hospital.daemon, kind, f"{label} of {name}", number, result)


def _note(daemon: Daemon, kind: str, label: str, number: int, result: Soaked) -> None:
    for process in daemon.processes(kind):
        result.memory.setdefault(f"{label} ({process.pid})", {})[number] = process.memory / 1e6


def _count(deployment: Deployment, result: Soaked) -> None:
    record = deployment.records()[-1]
    result.attempts.append(record["attempt"])
    for entry in record["hospitals"]:
        if entry["status"] == "admitted":
            result.admitted.setdefault(entry["site"], []).append(record["round"])
