"""A whole consortium of real processes on loopback: TLS, keys, a power cut, pause and stop, and the same model as without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from sim.deployment import Deployment
from sim.faults import in_process, make_sites, power_cut, same_model, trains

NAMES = ("riverside", "santa-clara")
ROUNDS = 5  # three of pretraining, one of fine-tuning, one test


@pytest.fixture(scope="module")
def plan() -> Plan:
    mapping: dict[str, Any] = {
        "schema": 1, "name": "network", "seed": 11,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 32},
        "model": {"encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 3, "local_epochs": 4, "batch_size": 8},
            {"kind": "finetune", "name": "detect", "rounds": 1, "local_epochs": 1, "batch_size": 8},
            {"kind": "evaluate", "name": "test"},
        ],
        "federation": {"quorum": 2, "deadline": 300, "join_deadline": 300, "absence": 120},
    }  # fmt: skip
    return read(Plan, mapping)


@pytest.fixture(scope="module")
def ended(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A run whose operator lost power during local training, that was held and let go, and has come to its end."""
    folder = tmp_path_factory.mktemp("consortium")
    with Deployment(folder, plan, make_sites(folder / "sites", plan, NAMES)) as deployment:
        deployment.start()
        deployment.wait_for_round(0)
        deployment.wait_until(lambda: trains(deployment.hospitals["riverside"]), "riverside has not begun to train")
        power_cut()(deployment)
        deployment.wait_for_round(1)
        deployment.hospitals["riverside"].line.stall()  # the rounds may not end before the operator's wish has come
        assert command(deployment, "pause").returncode == 0
        deployment.hospitals["riverside"].line.mend()
        deployment.wait_until(lambda: deployment.status().get("state") == "paused", "the run was not held")
        held = command(deployment, "status", "--json")
        assert held.returncode == 4
        (folder / "held.json").write_text(held.stdout, encoding="utf-8")
        assert command(deployment, "resume").returncode == 0
        assert deployment.finish() == 0, deployment.told()
        yield deployment


def command(deployment: Deployment, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("cxrbase-server"))
    asked = [program, name, str(deployment.file), *more]
    return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=120)


def test_the_model_is_the_one_that_the_hospitals_reach_without_a_network(
    ended: Deployment, plan: Plan, tmp_path: Path
) -> None:
    alone = in_process(tmp_path, plan, make_sites(tmp_path / "sites", plan, NAMES).values())
    for stage in ("mae", "detect"):
        assert same_model(ended.run, alone.folder, plan, stage)
    evaluations = [record["hospitals"][0]["evaluations"] for record in (ended.records()[-1], alone.records()[-1])]
    assert evaluations[0] == evaluations[1]


def test_no_round_was_lost_and_every_hospital_took_part_in_each(ended: Deployment) -> None:
    records = ended.records()
    assert [record["round"] for record in records] == list(range(ROUNDS + 1))
    for record in records:
        assert [entry["status"] for entry in record["hospitals"]] == ["admitted"] * 2


def test_the_status_told_who_was_there_while_the_run_was_held(ended: Deployment) -> None:
    status = json.loads((ended.folder / "held.json").read_text(encoding="utf-8"))
    assert (status["state"], status["rounds"]) == ("paused", ROUNDS)
    assert 1 <= status["rounds_done"] < ROUNDS
    assert [(h["name"], h["online"]) for h in status["hospitals"]] == [(name, True) for name in sorted(ended.hospitals)]
    assert all(h["bytes_received"] > 0 for h in status["hospitals"])


def test_a_run_that_is_done_says_so_to_people_and_programs(ended: Deployment) -> None:
    told = command(ended, "status")
    assert told.returncode == 0
    assert f"done, {ROUNDS} of {ROUNDS} rounds" in told.stdout
    assert (ended.run / "report.html").exists()
    assert (ended.run / "export" / "classifier").is_dir()


def test_nothing_that_the_operator_keeps_names_a_hospitals_folder(ended: Deployment) -> None:
    kept = [path for folder in (ended.run, ended.consortium.home) for path in folder.rglob("*") if path.is_file()]
    planted = str(ended.folder / "sites").encode()
    assert not [path for path in kept if planted in path.read_bytes()]
