"""Every fault of the table, one in each round: no round is lost, none is repeated more than once, and the model is the undisturbed one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sim.faults import PHASES, Outcome, fault_plan, run_faults, same_model, table, undisturbed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[Outcome]:
    return run_faults(folder / "net", table(), print)


def test_every_round_was_committed_with_every_hospital_in_it(outcomes: list[Outcome]) -> None:
    assert [outcome.round for outcome in outcomes] == list(range(1, len(table()) + 1))
    assert {outcome.what: outcome.missing for outcome in outcomes if outcome.missing} == {}
    assert max(outcome.attempts for outcome in outcomes) <= 2


def test_the_model_is_the_undisturbed_one(folder: Path, outcomes: list[Outcome]) -> None:
    plan = fault_plan(len(outcomes))
    assert same_model(folder / "net" / "run", undisturbed(folder / "alone", plan).folder, plan)


def test_the_table_has_each_kind_of_process_in_each_phase() -> None:
    phases = Counter(fault.what for fault in table())
    for what in ("kill -9 of the SuperLink", "kill -9 of the ServerApp", "kill -9 of a SuperNode", "line cut for 15 s"):
        assert phases[what] == len(PHASES)
