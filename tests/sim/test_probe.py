"""The linear probe tells hospitals whose embeddings differ, and is at chance where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from sim.probe import linear_probe


def test_hospitals_that_lie_apart_are_told_and_those_that_do_not_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    hospitals = np.repeat([0, 1, 2], [300, 30, 30])
    noise = rng.normal(size=(360, 4)).astype(np.float32)
    apart = noise + 10 * np.eye(4, dtype=np.float32)[hospitals]
    assert linear_probe(apart[::2], hospitals[::2], apart[1::2], hospitals[1::2]) == 1.0
    assert linear_probe(noise[::2], hospitals[::2], noise[1::2], hospitals[1::2]) == pytest.approx(1 / 3, abs=0.2)
