"""Eight hospitals, thirty rounds, lines that drop and machines that crash: every round is committed and nobody is locked out."""

from __future__ import annotations

import pytest

from sim.soak import Soaked, run_soak, schedule

pytestmark = pytest.mark.slow

ROUNDS = 30


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    return run_soak(tmp_path_factory.mktemp("soak"), ROUNDS, tell=print)


def test_every_round_was_committed(soaked: Soaked) -> None:
    assert len(soaked.attempts) == ROUNDS
    assert max(soaked.attempts) <= 2


def test_whoever_came_back_took_part_again(soaked: Soaked) -> None:
    assert soaked.locked_out() == []
    assert max(soaked.admitted[soaked.gone]) <= ROUNDS // 3 + 1


def test_no_process_grows_from_round_to_round(soaked: Soaked) -> None:
    grown = {name: size for name in soaked.memory if (size := soaked.growth(name)) is not None}
    assert len(grown) >= 4
    assert {name: size for name, size in grown.items() if size > 40} == {}


def test_the_same_seed_gives_the_same_events() -> None:
    told = [[(event.round, event.hospital, event.what) for event in schedule(ROUNDS, seed)] for seed in (1, 1, 2)]
    assert told[0] == told[1]
    assert told[0] != told[2]
