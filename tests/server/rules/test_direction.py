"""The cosines of a round's updates to the usual direction of the others, on cases computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from server.rules.direction import cosines, directions
from server.rules.spool import Spool


def of(*updates: list[float]) -> list[float]:
    rows = np.array(updates, float)
    return [float(each) for each in cosines(rows @ rows.T)]


def test_who_points_the_other_way_has_a_cosine_of_minus_one_however_long_it_is() -> None:
    assert of([1, 0], [2, 0], [0.5, 0], [-1e6, 0]) == pytest.approx([1, 1, 1, -1])


def test_across_is_zero_and_between_is_the_cosine_of_the_angle() -> None:
    assert of([1, 0], [1, 0], [1, 0], [1, 0], [0, 7], [1, 1])[3:] == pytest.approx([1, 0, 0.5**0.5], abs=1e-3)


def test_an_update_does_not_speak_for_itself() -> None:
    alike = of([1, 1, 0], [1, 0, 1], [1, 0, 0], [-1, -0.1, -0.1])
    assert alike[3] < -0.9
    assert min(alike[:3]) > 0.5


def test_who_sends_nothing_has_no_direction_and_two_that_cancel_have_no_usual_one() -> None:
    assert of([1, 0], [2, 0], [3, 0], [0, 0])[3] == 0
    assert of([1, 0], [-1, 0], [0, 3])[2] == pytest.approx(0, abs=1e-6)


def test_updates_are_told_apart_by_their_hospitals_whatever_the_order_in_which_they_came(tmp_path: Path) -> None:
    updates = {"d": [-1.0, 0.0], "a": [1.0, 0.1], "c": [1.0, -0.1], "b": [2.0, 0.0]}
    found = []
    for order in ("abcd", "dbca"):
        with Spool(tmp_path / order, {"w": torch.zeros(2)}) as spool:
            for site in order:
                spool.add(site, {"w": torch.tensor(updates[site])})
            found.append(directions(spool))
    assert found[0] == found[1]
    assert [site for site, cosine in found[0].items() if cosine < 0] == ["d"]


def test_without_updates_there_are_no_directions(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", {"w": torch.zeros(2)}) as spool:
        assert directions(spool) == {}
