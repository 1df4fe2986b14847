"""The demo's plan over the network, by three hospitals with DICOM archives, ends in the very model that the simulation reaches."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cxrbase_model.plan import EvaluateStage, read_plan
from server.store import RunStore
from sim.deployment import Deployment
from sim.faults import same_model

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
LONGEST = 1800.0  # seconds


def sim(*arguments: str) -> None:
    program = str(Path(sys.executable).with_name("cxrbase-sim"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=LONGEST)
    assert done.returncode == 0, done.stderr


def test_network_and_simulation_give_the_same_model(tmp_path: Path) -> None:
    plan, data = read_plan(CONFIGS / "plans" / "demo.yaml"), tmp_path / "data"
    sim("run", str(CONFIGS / "sim" / "demo.yaml"), "--data", str(data), "--out", str(tmp_path / "simulated"))
    sites = {}
    for file in sorted(data.glob("*/SITE.yaml")):
        shutil.rmtree(file.parent / "private" / "optimizer", ignore_errors=True)  # moments of the simulation
        shutil.rmtree(
            file.parent / "private" / "outbox", ignore_errors=True
        )  # and its answers: everything is trained anew
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) | {"daemon": {"health": ""}}
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        sites[settings["site"]] = file
    with Deployment(tmp_path / "net", plan, sites) as deployment:
        deployment.start()
        assert deployment.finish(LONGEST) == 0, deployment.told()
        runs = [RunStore(folder, plan) for folder in (deployment.run, tmp_path / "simulated")]
        for stage in plan.stages:
            if not isinstance(stage, EvaluateStage):
                assert same_model(runs[0].folder, runs[1].folder, plan, stage.name)
        digests = [[record.get("state_digest") for record in run.records()] for run in runs]
        assert digests[0] == digests[1]
