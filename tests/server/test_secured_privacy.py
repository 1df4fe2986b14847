"""Hospital-level privacy under secure aggregation: clipped and noised updates have the sum that they have in the open."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrbase_model.plan import Plan
from tests.server.secured import apart, plan, run, stated, weights

PRIVATE = {"clip": 0.5, "noise_multiplier": 0.0}
UNIFORM = {"weighting": "uniform"}
pytestmark = pytest.mark.usefixtures(
    "clock"
)  # deadlines are of its time, so that those who are silent cost none of ours


def test_clipped_updates_have_the_same_sum_under_masks(tmp_path: Path) -> None:
    how: dict[str, Any] = {"federation": UNIFORM, "aggregation": {"privacy": PRIVATE}}
    the_plan = plan(**how)
    hidden, plain = run(tmp_path / "hidden", the_plan), run(tmp_path / "plain", plan(secure=None, **how))
    told, known = hidden.records()[1]["privacy"], plain.records()[1]["privacy"]
    assert [told[key] for key in ("clip", "divisor")] == [known[key] for key in ("clip", "divisor")] == [0.5, 4]
    numbers = sum(each.numel() for each in weights(hidden).values())
    coarse = numbers**0.5 * 8 / 2**32  # what is clipped away so that rounding to steps cannot lengthen an update
    assert apart(hidden, plain) <= stated(the_plan, 4, 4.0) + 0.5 * (coarse + 2e-5)


def test_the_noise_of_hospitals_is_in_the_sum_and_the_count_of_short_updates_is_learned(tmp_path: Path) -> None:
    private = {
        "clip": 50.0,
        "noise_multiplier": 0.02,
        "noise": "hospitals",
        "adaptive": {"count_noise": 1.0, "quantile": 0.5},
    }
    how: dict[str, Any] = {"federation": UNIFORM | {"quorum": 4}, "aggregation": {"privacy": private}}
    noised = run(tmp_path / "noised", plan(**how))
    how["aggregation"] = {"privacy": private | {"noise_multiplier": 0.0}}
    quiet = run(tmp_path / "quiet", plan(**how))
    first, second = weights(noised), weights(quiet)
    noise = torch.cat([(first[name] - second[name]).flatten() for name in first if first[name].numel()])
    noise = noise[noise != 0]
    made = the_noise(plan(**how | {"aggregation": {"privacy": private}}))
    assert len(noise) > 100_000
    assert float(noise.std()) == pytest.approx(made * 50.0 / 4, rel=0.02)
    told, known = noised.records()[1]["privacy"], quiet.records()[1]["privacy"]
    assert known["short"] == pytest.approx(1.0, abs=1e-6), "no update is as long as the clip"
    assert known["next_clip"] == pytest.approx(50.0 * math.exp(-0.2 * 0.5), rel=1e-6)
    assert 0 < abs(told["short"] - 1.0) < 0.1


def the_noise(the_plan: Plan) -> float:
    """Standard deviation of the sum's noise, in clips, of four hospitals that add their shares."""
    privacy = the_plan.aggregation.privacy
    assert privacy is not None
    return privacy.share(the_plan.federation.quorum) * 4**0.5
