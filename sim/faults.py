"""Everything that can go wrong with a consortium's machines and lines, done to a real one, a fault in each round.

The rounds go on meanwhile; what each fault costs is written down, and at the end the model is compared with the one that the same
hospitals reach without any network or fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer
from client.site import Site, read_site
from cxrbase_model.messages import reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from cxrbase_model.state import digest
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.deployment import CLIENTAPP, SERVERAPP, SUPERLINK, SUPERNODE, Deployment, Hospital
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

NAMES = ("lindenhof", "riverside", "santa-clara")
_TARGET, _HELD = "riverside", "santa-clara"  # the hospital that faults befall, and one whose reply can be held back
_UPLOAD = 4.0  # seconds that an upload takes at the rate that an upload is watched at

Strike = Callable[[Deployment], None]


@dataclass(frozen=True)
class Fault:
    """What is done, and in which phase of a round; `strike` does it and returns when it is over."""

    what: str
    phase: str
    strike: Strike


@dataclass(frozen=True)
class Outcome:
    """What became of a round in which a fault struck. attempts: 1 where the round was not repeated; missing: hospitals left out."""

    round: int
    what: str
    phase: str
    struck: float  # seconds after the round before was committed
    seconds: float  # from the fault to the commit
    attempts: int
    missing: tuple[str, ...]


def kill(kind: str, of: str | None = None) -> Strike:
    """kill -9 of every process of a kind; the operator's, or a hospital's."""

    def strike(deployment: Deployment) -> None:
        daemon = deployment.operator if of is None else deployment.hospitals[of].daemon
        for process in daemon.processes(kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    return strike


def power_cut(of: str | None = None, seconds: float = 2.0) -> Strike:
    """kill -9 of a daemon and of everything below it, and the same command again after a while."""

    def strike(deployment: Deployment) -> None:
        daemon = deployment.operator if of is None else deployment.hospitals[of].daemon
        daemon.kill_all()
        time.sleep(seconds)
        daemon.start()

    return strike


def restart(of: str) -> Strike:
    """A clean stop of a hospital's daemon and a new start with the same key (Flower issue 4844)."""

    def strike(deployment: Deployment) -> None:
        deployment.hospitals[of].daemon.stop()
        deployment.hospitals[of].daemon.start()

    return strike


def outage(of: str, seconds: float, *, stalled: bool = False) -> Strike:
    """The line is down, or open and passing nothing on, for a while."""

    def strike(deployment: Deployment) -> None:
        line = deployment.hospitals[of].line
        line.stall() if stalled else line.cut()
        time.sleep(seconds)
        line.mend()

    return strike


def slow(of: str, rate: float) -> Strike:
    """The line passes `rate` bytes a second until the round is over."""

    def strike(deployment: Deployment) -> None:
        number, line = deployment.committed() + 1, deployment.hospitals[of].line
        line.rate = rate
        deployment.wait_for_round(number)
        line.rate = None

    return strike


BEFORE, TRAINING, UPLOAD, AGGREGATION, COMMIT = PHASES = (
    "before the task", "during local training", "during upload", "during aggregation", "during commit",
)  # fmt: skip


def table() -> list[Fault]:
    """All faults, each in the phases in which it means something."""
    faults = [Fault("kill -9 of the SuperLink", phase, kill(SUPERLINK)) for phase in PHASES]
    faults += [Fault("kill -9 of the ServerApp", phase, kill(SERVERAPP)) for phase in PHASES]
    faults += [Fault("power cut at the operator's", phase, power_cut()) for phase in (TRAINING, COMMIT)]
    faults += [Fault("kill -9 of a SuperNode", phase, kill(SUPERNODE, _TARGET)) for phase in PHASES]
    faults += [Fault("kill -9 of a ClientApp", TRAINING, kill(CLIENTAPP, _TARGET))]
    faults += [Fault("power cut at a hospital's", phase, power_cut(_TARGET)) for phase in (TRAINING, UPLOAD)]
    faults += [Fault("clean stop and start of a hospital's daemon", TRAINING, restart(_TARGET))]
    faults += [Fault("line cut for 15 s", phase, outage(_TARGET, 15)) for phase in PHASES]
    faults += [Fault("line cut for 90 s", TRAINING, outage(_TARGET, 90))]
    faults += [Fault("line stalled for 40 s", phase, outage(_TARGET, 40, stalled=True)) for phase in (BEFORE, UPLOAD)]
    faults += [Fault("slow line, 2 Mbit/s", BEFORE, slow(_TARGET, 250_000))]
    return faults


def fault_plan(rounds: int, local_epochs: float = 16) -> Plan:
    """A plan of many short rounds with an update of 1.7 MB, and a few seconds of training in each hospital."""
    mapping = {
        "schema": 1, "name": "faults", "seed": 5,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 32},
        "model": {"encoder": "vit_micro", "patch_size": 8, "depth": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": rounds, "local_epochs": local_epochs, "batch_size": 8}],
        "federation": {"quorum": 2, "deadline": 600, "join_deadline": 300, "absence": 300, "keep_checkpoints": 2},
    }  # fmt: skip
    return read(Plan, mapping)


def make_sites(folder: Path, plan: Plan, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """A tiny hospital for each name; the same names give the same pictures in any folder."""
    return {name: write_tiny_hospital(folder / name, name, plan.data) for name in names}


def run_faults(
    folder: Path, faults: list[Fault], tell: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Do each fault in a round of its own to a consortium in `folder`; DeploymentFailed where it does not recover."""
    plan = fault_plan(len(faults))
    outcomes = []
    with Deployment(folder, plan, make_sites(folder / "sites", plan)) as deployment:
        deployment.start()
        deployment.wait_for_round(0)
        for number, fault in enumerate(faults, start=1):
            outcomes.append(_befall(deployment, number, fault))
            tell(outcomes[-1])
        status = deployment.finish()
    assert status == 0, f"the operator's daemon has ended with {status}"
    return outcomes


def undisturbed(folder: Path, plan: Plan) -> RunStore:
    """The same plan and hospitals in this process, without network, daemons or faults."""
    return in_process(folder, plan, make_sites(folder / "sites", plan).values())


def in_process(folder: Path, plan: Plan, site_files: Iterable[Path]) -> RunStore:
    """A plan run by hospitals in this process, without Flower's programs; what they keep must not be shared with another run."""
    sites = [read_site(file) for file in site_files]
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = (
        1  # Flower makes messages in the process of a task only
    )
    store = RunStore.create(folder / "run", plan)
    grid = LocalGrid({number: _node(site) for number, site in enumerate(sites, start=1)})
    RoundLoop(Exchange(grid), store, Live(store.folder), expected=len(sites)).run()
    return store


def same_model(one: Path, other: Path, plan: Plan, stage: str = "mae") -> bool:
    """Whether two run directories hold the same final weights of a stage, to the bit."""
    return digest(RunStore(one, plan).stage_state(stage)) == digest(RunStore(other, plan).stage_state(stage))


def _node(site: Site) -> Node:
    def reply(message: Message) -> Message:
        return reply_to_message(answer(task_from_message(message), site), message)

    return reply


def _befall(deployment: Deployment, number: int, fault: Fault) -> Outcome:
    deployment.wait_for_round(number - 1)
    began = time.monotonic()
    _await_phase(deployment, number, fault.phase)
    struck = time.monotonic()
    try:
        fault.strike(deployment)
    finally:
        for hospital in deployment.hospitals.values():
            hospital.line.mend()
            hospital.line.rate = None
    deployment.wait_for_round(number)
    record = next(record for record in deployment.records() if record["round"] == number)
    missing = tuple(entry["site"] for entry in record["hospitals"] if entry["status"] != "admitted")
    missing += tuple(name for name in deployment.hospitals if name not in {e["site"] for e in record["hospitals"]})
    seconds = time.monotonic() - struck
    return Outcome(number, fault.what, fault.phase, struck - began, seconds, record["attempt"], missing)


def _await_phase(deployment: Deployment, number: int, phase: str) -> None:
    """Return in a phase of a round that has just begun."""
    target, held = deployment.hospitals[_TARGET], deployment.hospitals[_HELD]
    if phase == TRAINING:
        deployment.wait_until(lambda: trains(target), f"{target.name} has not begun to train")
    elif phase == UPLOAD:
        _watch_upload(deployment, target)
    elif phase == AGGREGATION:
        deployment.wait_until(lambda: trains(held), f"{held.name} has not begun to train")
        held.line.stall()
        deployment.wait_until(
            lambda: deployment.status().get("waiting_for") == [held.name], "the others have not answered"
        )
        held.line.mend()
    elif phase == COMMIT:
        draft = deployment.run / "checkpoints" / f".round-{number:05d}.draft"
        deployment.wait_until(draft.exists, f"round {number} was not being committed", pause=0.0)


def trains(hospital: Hospital) -> bool:
    """Whether a hospital's ClientApp has its pictures open."""
    pictures = str(hospital.private / "cache")
    for process in hospital.daemon.processes(CLIENTAPP):
        with contextlib.suppress(OSError):
            if pictures in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def _watch_upload(deployment: Deployment, hospital: Hospital) -> None:
    deployment.wait_until(lambda: trains(hospital), f"{hospital.name} has not begun to train")
    size = max(record["bytes_sent"] for record in deployment.records()) / len(deployment.hospitals) or 1.6e6
    hospital.line.rate, before = size / _UPLOAD, hospital.line.sent
    deployment.wait_until(lambda: hospital.line.sent - before > size / 4, f"{hospital.name} has not sent its update")
