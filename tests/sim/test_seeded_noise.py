"""A simulation may seed its privacy noise, and its report tells; no hospital can be made to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.config import read_config

COMMAND = str(Path(sys.executable).with_name("cxrbase-sim"))
PLAN = """
schema: 1
name: private
seed: 3
data: {image_size: 32, findings: [No Finding, Cardiomegaly, Pleural Effusion], validation: 0.2, test: 0.3}
model: {encoder: vit_micro, patch_size: 8, depth: 1, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}
privacy: {unit: patient, noise_multiplier: 1.0}
stages:
  - {kind: finetune, name: detect, init: random, rounds: 1, batch_size: 8, positive_weight: 1.0}
  - {kind: finetune, name: head, init: "stage:detect", trains: head, rounds: 1, batch_size: 8, positive_weight: 1.0}
federation: {quorum: 2, deadline: 120, join_deadline: 120}
"""
CONFIG = """
plan: plan.yaml
hospitals: {kind: phantom, count: 2, pictures: 40, seed: 1}
data: hospitals
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    (folder / "plan.yaml").write_text(PLAN, encoding="utf-8")
    (folder / "secure.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "seeded.yaml").write_text(CONFIG + "seeded_noise: true\n", encoding="utf-8")
    return folder


def run(study: Path, config: str, out: str) -> tuple[Path, str]:
    command = [COMMAND, "run", str(study / f"{config}.yaml"), "--out", str(study / out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return study / out, done.stdout


def test_noise_is_secure_unless_a_simulation_says_otherwise(study: Path) -> None:
    assert not read_config(study / "secure.yaml")[0].seeded_noise
    assert read_config(study / "seeded.yaml")[0].seeded_noise


def test_a_seeded_run_says_so_in_its_report_and_on_the_terminal(study: Path) -> None:
    first, told = run(study, "seeded", "first")
    assert "privacy noise was seeded" in told
    assert "privacy noise is seeded" in told
    assert json.loads((first / "report.json").read_text())["run"]["seeded_noise"] is True
    assert "privacy noise was seeded" in (first / "report.html").read_text()


def test_a_run_with_secure_noise_says_nothing_of_seeds_and_tells_no_loss(study: Path) -> None:
    folder, told = run(study, "secure", "secure")
    assert "seeded" not in told
    assert "seeded" not in (folder / "report.html").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert "seeded_noise" not in report["run"]
    trained = [line for record in report["rounds"] if record["kind"] == "finetune" for line in record["hospitals"]]
    assert [line["status"] for line in trained] == ["admitted"] * 4
    assert all((line["loss"], line["metrics"], line["seconds"]) == (None, {}, 0.0) for line in trained)
