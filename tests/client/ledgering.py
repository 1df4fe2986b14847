"""What the tests of the ledger run in processes of their own, some of which are killed."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.accounting import epsilon
from client.archive.settings import DicomArchive
from client.budget import ledger_of, reserve
from client.policy import Refused
from client.release import leave
from client.site import Policy, Site
from cxrbase_model.messages import Reply, Task
from cxrbase_model.plan import DataSpec, FinetuneStage, Plan, plan_to_text
from cxrbase_model.privacy import Mechanism, Privacy

PLAN = Plan(
    schema=1, name="private", data=DataSpec(findings=("Nodule",), image_size=32),
    stages=(FinetuneStage(name="detect", init="random", rounds=100_000, positive_weight=1.0),), privacy=Privacy(),
)  # fmt: skip
TASK = Task("finetune", "run", 1, "detect", 1, "detect", plan_to_text(PLAN), PLAN.digest)


def promised(plan: Plan, **privacy: Any) -> Plan:
    """The plan with a guarantee, and with what a guarantee asks of its stages."""
    stages = (
        replace(stage, positive_weight=1.0, label_fraction=1.0) if isinstance(stage, FinetuneStage) else stage
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages), privacy=Privacy(**privacy))


def site_in(private: Path, **policy: Any) -> Site:
    """A hospital without anything but a private folder and a policy."""
    settings = Policy(plans="any", **policy)
    return Site(schema=1, site="riverside", archive=DicomArchive(path=private), private=private, policy=settings)


def reply_to(task: Task, size: int = 1000) -> Reply:
    """The reply of a training."""
    return Reply(
        "riverside", "finetune", task.round, task.stage, task.plan_digest, examples=36, steps=4, update=b"u" * size
    )


def train_for_ever(private: str, started: str, first: int, mechanism: Mechanism) -> None:
    """Reserve and commit rounds one after another; each reserved round and each commit is written to the file `started` at once."""
    site, number = site_in(Path(private)), first
    with Path(started).open("ab", buffering=0) as file:
        while True:
            task = replace(TASK, round=number)
            began = ledger_of(site).count()
            reserve(site, task, mechanism)
            file.write(f"reserve {number}\n".encode())
            leave(reply_to(task), task, site, began)
            file.write(f"commit {number}\n".encode())
            number += 1


def train_and_kill(home: Path, mechanism: Mechanism, reservations: int) -> int:
    """Kill trainings at random times, at least a dozen, until so many reservations are made; how many were killed."""
    site, rng, kills = site_in(home / "private"), random.Random(7), 0
    context = multiprocessing.get_context("fork")  # of a process that has one thread
    epsilon([mechanism], "patient", 1e-5)  # the children need not compute it
    while kills < 12 or sum(entry.kind == "reserve" for entry in ledger_of(site).entries()) < reservations:
        arguments = (str(site.private), str(home / "started"), 1000 * kills + 1, mechanism)
        worker = context.Process(target=train_for_ever, args=arguments)
        worker.start()
        time.sleep(0.02 + 0.3 * rng.random())
        worker.kill()
        worker.join()
        kills += 1
    return kills


def reserve_until_refused(private: str, budget: float, mechanism: Mechanism, name: str) -> int:
    """How many reservations passed before one was refused."""
    site, passed = site_in(Path(private), epsilon=budget), 0
    while True:
        try:
            reserve(site, replace(TASK, run=name, round=passed + 1), mechanism)
        except Refused:
            return passed
        passed += 1


def at_once(home: Path, mechanism: Mechanism, budget: float) -> list[int]:
    """How many reservations passed in each of four processes that ask at once."""
    epsilon([mechanism], "patient", 1e-5)  # they need not import the accountant
    with multiprocessing.get_context("fork").Pool(4) as pool:
        asked = [(str(home), budget, mechanism, f"run {number}") for number in range(4)]
        return pool.starmap(reserve_until_refused, asked, chunksize=1)


def run(what: str, home: Path, mechanism: Mechanism, number: float) -> Any:
    """What `train_and_kill` or `at_once` gives, in a process of its own: one that has a single thread may fork."""
    arguments = [what, str(home), json.dumps(vars(mechanism)), str(number)]
    command = [sys.executable, "-m", "tests.client.ledgering", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(what: str, home: str, mechanism: str, number: str) -> None:
    """Print the result as JSON."""
    spends = Mechanism(**json.loads(mechanism))
    if what == "kills":
        print(json.dumps(train_and_kill(Path(home), spends, int(float(number)))))
    else:
        print(json.dumps(at_once(Path(home), spends, float(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
