"""Replies that are sent twice, that belong to a past round, or that speak for another hospital, over a real SuperLink."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from client.membership import membership
from client.site import read_site
from cxrbase_model.messages import Reply, Task
from sim.deployment import Deployment
from sim.faults import fault_plan, in_process, make_sites
from tests.network.rogue import rogue

pytestmark = pytest.mark.slow

NAMES = ("riverside", "lindenhof")
TASKS = 4  # the description and three rounds


class Misbehaviour:
    """In round 1 the reply comes twice, in round 2 the one of round 1 comes first, in round 3 it is in another's name."""

    def __init__(self) -> None:
        self._earlier: Reply | None = None

    def __call__(self, task: Task, honest: Reply) -> list[Reply]:
        """What is sent."""
        earlier, self._earlier = self._earlier, honest
        if task.round == 1:
            return [honest, replace(honest, loss=0.0), honest]
        if task.round == 2:
            assert earlier is not None
            return [earlier, honest]
        return [replace(honest, site="riverside")] if task.round == 3 else [honest]


def test_what_a_rogue_sends_counts_once_or_not_at_all(tmp_path: Path) -> None:
    plan = fault_plan(3)
    plan = replace(plan, federation=replace(plan.federation, quorum=1))
    sites = make_sites(tmp_path / "sites", plan, NAMES)
    with Deployment(tmp_path / "net", plan, sites) as deployment:
        deployment.operator.start()
        deployment.hospitals["riverside"].daemon.start()
        deployment.wait_until(lambda: "submitted" in deployment.operator.tail(), "the rounds were not submitted")
        site = read_site(sites["lindenhof"])
        with rogue(site, membership(site)) as hospital:
            played = threading.Thread(target=hospital.serve, args=(TASKS, Misbehaviour()), daemon=True)
            played.start()
            assert deployment.finish() == 0, deployment.told()
            played.join(10)
        answers = [
            {entry["site"]: (entry["status"], entry["code"]) for entry in record["hospitals"]}
            for record in deployment.records()[1:]
        ]
        assert [each["riverside"] for each in answers] == [("admitted", None)] * 3
        assert [each["lindenhof"] for each in answers] == [
            ("admitted", None), ("rejected", "ROUND"), ("rejected", "IDENTITY"),
        ]  # fmt: skip
        alone = in_process(tmp_path / "alone", plan, make_sites(tmp_path / "others", plan, NAMES).values())
        digests = [[record["state_digest"] for record in run.records()[1:]] for run in (deployment, alone)]
        assert digests[0][0] == digests[1][0]  # the reply that came twice counts once
        assert digests[0][1:] != digests[1][1:]  # the others were left out
