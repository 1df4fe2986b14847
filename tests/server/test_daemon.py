"""The operator's daemon apart from its processes, which `tests/network` runs."""

from __future__ import annotations

import threading
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cxrbase_model.plan import Plan, read_plan, timeline
from server.consortium import read_consortium
from server.daemon import Daemon, Rounds
from server.enrolment import enrol, provision
from server.live import Live
from server.store import RunStore

PLAN = Path(__file__).parents[2] / "configs" / "plans" / "demo.yaml"
SETTINGS = {"schema": 1, "name": "northlight", "address": "localhost", "hospitals": ["riverside"]}


def public_key(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    path.write_bytes(key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    return path


def test_a_hospital_that_joins_while_the_run_goes_on_is_let_in(tmp_path: Path) -> None:
    file, plan = tmp_path / "consortium.yaml", read_plan(PLAN)
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    provision(read_consortium(file))
    daemon = started(file, plan)
    assert daemon.wanted_keys() == {}
    file.write_text(yaml.safe_dump(SETTINGS | {"hospitals": ["riverside", "oak"]}), encoding="utf-8")
    provision(read_consortium(file))
    enrol(read_consortium(file), "oak", public_key(tmp_path / "oak.pub"))
    assert daemon.wanted_keys().keys() == {"oak"}
    file.write_text("schema: [", encoding="utf-8")  # half written
    assert daemon.wanted_keys().keys() == {"oak"}


def test_a_plan_that_is_done_starts_nothing_again(tmp_path: Path) -> None:
    file, plan = tmp_path / "consortium.yaml", read_plan(PLAN)
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    provision(read_consortium(file))
    RunStore.create(tmp_path / "run", plan).commit({"round": len(timeline(plan))}, None, ends_stage=False)
    assert started(file, plan).run() == ("done", "")
    assert not (tmp_path / "consortium" / "superlink.db").exists()


def test_rounds_that_commit_one_before_they_die_have_got_on(tmp_path: Path) -> None:
    file, plan = tmp_path / "consortium.yaml", read_plan(PLAN)
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    provision(read_consortium(file))
    store = RunStore.create(tmp_path / "run", plan)
    daemon = started(file, plan)
    assert not daemon.got_on()
    store.commit({"round": 0}, None, ends_stage=False)
    assert daemon.got_on()


def test_rounds_that_have_the_process_number_of_those_before_a_restart_are_told_apart(tmp_path: Path) -> None:
    Live(tmp_path)  # in a container the same number comes back
    rounds = Rounds(tmp_path)
    rounds.submitted()
    assert rounds.go_on()  # they may still begin
    Live(tmp_path).tell("done")
    assert not rounds.go_on()
    assert rounds.outcome() == ("done", "")


def started(file: Path, plan: Plan) -> Daemon:
    return Daemon(file, read_consortium(file), plan, lambda text: None, threading.Event())
