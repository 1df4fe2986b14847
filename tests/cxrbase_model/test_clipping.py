"""Clipping of whole updates, and the plans that aggregation.privacy refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.clipping import clip_, is_short, protected_names
from cxrbase_model.plan import FinetuneStage, Plan, plan_from_text, plan_to_text
from cxrbase_model.protection import Adaptive, HospitalPrivacy
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.state import State, norm
from tests.server.hospitals import plan

UNIFORM: dict[str, Any] = {"weighting": "uniform", "quorum": 3}


def private(privacy: dict[str, Any], *, federation: dict[str, Any] = UNIFORM, **sections: Any) -> Plan:
    aggregation = {"privacy": privacy} | sections.pop("aggregation", {})
    mapping = to_mapping(plan(**federation))
    return read(Plan, mapping | {"aggregation": aggregation} | sections)


def clipped(update: State, clip: float, names: set[str]) -> State:
    found = {name: tensor.clone() for name, tensor in update.items()}
    clip_(found, clip, names)
    return found


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4, 1e12])
def test_no_update_is_longer_than_the_clip_and_a_shorter_one_stays(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    update = {name: torch.randn(1000, generator=draw) * scale for name in ("a", "b")}
    length = norm(update)
    for clip in (0.1 * length, 0.999 * length, 1e-9):
        if clip < length:
            assert clip * 0.9999 < norm(clipped(update, clip, {"a", "b"})) <= clip
            assert not is_short(update, clip, {"a", "b"})
            assert not is_short(clipped(update, clip, {"a", "b"}), clip, {"a", "b"}), "the server sees it clipped"
    longer = clipped(update, 1.001 * length, {"a", "b"})
    assert all(torch.equal(longer[name], update[name]) for name in update)
    assert is_short(update, 1.001 * length, {"a", "b"})


def test_what_a_stage_does_not_train_neither_counts_nor_leaves() -> None:
    update = {"frozen": torch.tensor([100.0]), "head": torch.tensor([3.0, 4.0])}
    found = clipped(update, 10.0, {"head"})
    assert found["frozen"].tolist() == [0.0]
    assert found["head"].tolist() == [3.0, 4.0]


def test_a_frozen_encoder_and_what_stays_in_the_hospital_get_no_noise() -> None:
    stage = plan().stage("detect")
    assert isinstance(stage, FinetuneStage)
    model = build_classifier(plan(), replace(stage, trains="head"))
    aggregation = plan().aggregation
    assert protected_names(model, aggregation) == {"head.weight", "head.bias", "head_norm.weight", "head_norm.bias"}
    assert protected_names(model, replace(aggregation, keep_local=("*.bias",))) == {"head.weight", "head_norm.weight"}


def test_a_noised_count_costs_nothing_beside_the_updates_raised_noise() -> None:
    """Theorem 1 of Andrew et al.: both Gaussian mechanisms together are one of the stated multiplier."""
    privacy = HospitalPrivacy(noise_multiplier=1.3, adaptive=Adaptive(count_noise=2.0))
    together = (1 / privacy.update_noise**2 + (0.5 / privacy.count_noise) ** 2) ** -0.5  # a count moves by one half
    assert together == pytest.approx(1.3)


@pytest.mark.parametrize(("honest", "makers"), [(None, 2), (1, 1), (3, 3)])
def test_the_shares_of_those_who_do_not_tell_them_make_up_the_noise(honest: int | None, makers: int) -> None:
    privacy = HospitalPrivacy(noise_multiplier=0.7, noise="hospitals", honest=honest)
    assert math.sqrt(makers) * privacy.share(3) == pytest.approx(0.7)


def test_a_plan_with_privacy_travels_whole() -> None:
    whole = private({"clip": 0.5, "noise_multiplier": 2.0, "adaptive": {"quantile": 0.6}})
    assert plan_from_text(plan_to_text(whole)) == whole


@pytest.mark.parametrize(
    ("message", "privacy", "sections"),
    [
        (r"federation.weighting: expected uniform .* found examples", {}, {"federation": {"quorum": 3}}),
        (r"aggregation.rule: expected mean .* found median", {}, {"aggregation": {"rule": {"kind": "median"}}}),
        (r"transport.update: expected float32 .* found int8", {}, {"transport": {"update": "int8"}}),
        (r"federation.outlier: expected none .* found 10", {}, {"federation": {**UNIFORM, "outlier": 10.0}}),
        (r"federation.longest: expected none .* found 3", {}, {"federation": {**UNIFORM, "longest": 3.0}}),
        (r"federation.cosine: expected none .* found 0", {}, {"federation": {**UNIFORM, "cosine": 0.0}}),
        (r"federation.shortest: expected none .* found 0.1", {}, {"federation": {**UNIFORM, "shortest": 0.1}}),
        (
            r"aggregation.privacy.honest: expected at most federation.quorum 3, found 4",
            {"noise": "hospitals", "honest": 4},
            {},
        ),
        (
            r"federation.max_update_norm: expected none .* found 5",
            {"noise": "hospitals"},
            {"federation": {**UNIFORM, "max_update_norm": 5.0}},
        ),
        (r"aggregation.privacy.adaptive: expected none", {"noise": "hospitals", "adaptive": {}}, {}),
        (r"aggregation.privacy.clip: .*0", {"clip": 0.0}, {}),
        (r"aggregation.privacy.adaptive.count_noise: .*0.5", {"adaptive": {"count_noise": 0.5}}, {}),
    ],
)
def test_a_plan_that_would_break_its_promise_is_refused(
    message: str, privacy: dict[str, Any], sections: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=message):
        private(privacy, **sections)
