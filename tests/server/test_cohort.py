"""The choice of hospitals is seeded, sorted and never below the quorum."""

from __future__ import annotations

from server.cohort import choose

SITES = [f"site-{index}" for index in range(10)]


def test_everybody_is_asked_by_default() -> None:
    assert choose(reversed(SITES), 1.0, 2, seed=0, round_number=1) == SITES


def test_a_share_is_rounded_up_and_the_quorum_is_kept() -> None:
    assert len(choose(SITES, 0.31, 2, seed=0, round_number=1)) == 4
    assert len(choose(SITES, 0.1, 3, seed=0, round_number=1)) == 3
    hundred = [f"site-{index}" for index in range(100)]
    assert len(choose(hundred, 0.07, 1, seed=0, round_number=1)) == 7, "0.07 * 100 is above 7 in floating point"
    assert choose(SITES[:1], 0.5, 3, seed=0, round_number=1) == SITES[:1]


def test_the_choice_repeats_for_a_round_and_changes_between_rounds() -> None:
    first = choose(SITES, 0.3, 1, seed=5, round_number=1)
    assert first == choose(list(reversed(SITES)), 0.3, 1, seed=5, round_number=1)
    assert len({tuple(choose(SITES, 0.3, 1, seed=5, round_number=n)) for n in range(20)}) > 5
    asked = {site for n in range(60) for site in choose(SITES, 0.3, 1, seed=5, round_number=n)}
    assert asked == set(SITES)
