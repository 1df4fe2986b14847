"""A simulation may seed its privacy noise, and its report tells; no hospital can be made to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from client.app import answer
from client.guard import Noise, secure
from client.site import read_site
from cxrbase_model.messages import reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.state import digest
from server.app import RunSettings
from server.exchange import Exchange
from server.live import Live
from server.report import write_report
from server.rounds import RoundLoop
from server.store import RunStore
from sim.config import SimConfig, read_config
from sim.grid import LocalGrid, Node
from sim.runner import noise_of, seeded_noise
from sim.tiny import write_tiny_hospital

COMMAND = str(Path(sys.executable).with_name("cxrbase-sim"))
PLAN = """
schema: 1
name: private
seed: 3
data: {image_size: 16, findings: [No Finding, Cardiomegaly, Pleural Effusion], validation: 0.2, test: 0.3}
model: {encoder: vit_micro, patch_size: 8, depth: 1, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}
privacy: {unit: patient, noise_multiplier: 1.0}
stages:
  - {kind: finetune, name: detect, init: random, rounds: 1, batch_size: 8, positive_weight: 1.0}
  - {kind: finetune, name: head, init: "stage:detect", trains: head, rounds: 1, batch_size: 8, positive_weight: 1.0}
federation: {quorum: 2, deadline: 600, join_deadline: 600}
"""
CONFIG = """
plan: plan.yaml
hospitals: {kind: phantom, count: 2, pictures: 40, seed: 1}
data: hospitals
"""
Run = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with secure noise and one with seeded noise, and two hospitals."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "plan.yaml").write_text(PLAN, encoding="utf-8")
    (folder / "secure.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "seeded.yaml").write_text(CONFIG + "seeded_noise: true\n", encoding="utf-8")
    plan = read_config(folder / "secure.yaml")[1]
    for name in ("north", "south"):
        write_tiny_hospital(folder / "tiny" / name, name, plan.data)
    return folder


@pytest.fixture(scope="module")
def run(study: Path) -> Run:
    """Run a configuration in this process, without Flower's runtime: `run("seeded", "first")`."""

    def make(name: str, out: str) -> Path:
        config, plan = read_config(study / f"{name}.yaml")
        folder = study / out
        noise = noise_of(config, RunSettings(folder, plan))
        files = sorted((study / "tiny").glob("*/SITE.yaml"))
        grid = LocalGrid({number: node(file, noise) for number, file in enumerate(files)})
        RoundLoop(Exchange(grid), RunStore.create(folder, plan), Live(folder), expected=len(files)).run()
        write_report(folder)
        return folder

    return make


def node(file: Path, noise: Noise) -> Node:
    def answers(message: Message) -> Message:
        return reply_to_message(answer(task_from_message(message), read_site(file), noise), message)

    return answers


def weights(folder: Path, plan: Plan) -> str:
    return digest(RunStore(folder, plan).stage_state("head"))


def test_noise_is_secure_unless_a_simulation_of_a_private_plan_says_otherwise(study: Path, tmp_path: Path) -> None:
    (unset, plan), (seeded, _) = read_config(study / "secure.yaml"), read_config(study / "seeded.yaml")
    assert not SimConfig(plan=study / "plan.yaml").seeded_noise
    assert noise_of(unset, RunSettings(tmp_path, plan)) is secure
    assert noise_of(seeded, RunSettings(tmp_path, plan)) is seeded_noise


def test_a_seeded_run_repeats_and_its_report_says_so_also_after_a_secure_session(study: Path, run: Run) -> None:
    plan = read_config(study / "seeded.yaml")[1]
    first, second = run("seeded", "first"), run("seeded", "second")
    assert weights(first, plan) == weights(second, plan)
    noise_of(read_config(study / "secure.yaml")[0], RunSettings(first, plan, resume=True))
    assert write_report(first)["run"]["seeded_noise"] is True
    assert "privacy noise was seeded" in (first / "report.html").read_text()


def test_a_secure_run_does_not_repeat_says_nothing_of_seeds_and_tells_no_loss(study: Path, run: Run) -> None:
    plan = read_config(study / "secure.yaml")[1]
    first, second = run("secure", "secure"), run("secure", "again")
    assert weights(first, plan) != weights(second, plan)
    assert "seeded" not in (first / "report.html").read_text()
    report = json.loads((first / "report.json").read_text())
    assert "seeded_noise" not in report["run"]
    trained = [line for record in report["rounds"] if record["kind"] == "finetune" for line in record["hospitals"]]
    assert [line["status"] for line in trained] == ["admitted"] * 4
    assert all((line["loss"], line["metrics"], line["seconds"]) == (None, {}, 0.0) for line in trained)


@pytest.mark.slow
def test_the_command_says_on_the_terminal_that_noise_is_seeded(study: Path) -> None:
    command = [COMMAND, "run", str(study / "seeded.yaml"), "--out", str(study / "command")]
    done = subprocess.run(  # in the study's folder, where the configuration's hospitals are made
        command, cwd=study, capture_output=True, text=True, timeout=1800, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "privacy noise is seeded" in done.stdout
    assert "privacy noise was seeded" in done.stdout
    assert json.loads((study / "command" / "report.json").read_text())["run"]["seeded_noise"] is True
