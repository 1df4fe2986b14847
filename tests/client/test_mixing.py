"""FedEMA's mixing of the global encoder and the hospital's own: by hand, and in a hospital's rounds."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.dataset import Cache
from client.mixing import FOLDER, Mixing, forget_mixing
from client.site import Site
from client.work import train
from cxrbase_model.engine import Runtime
from cxrbase_model.messages import Task
from cxrbase_model.plan import Plan
from cxrbase_model.state import State

CPU = Runtime(torch.device("cpu"))


def task(stage_round: int) -> Task:
    return Task("pretrain", "run", stage_round, "mae", stage_round, "mae", "text", "digest")


def weights(encoder: list[float]) -> State:
    return {"encoder.w": torch.tensor(encoder), "decoder.w": torch.tensor([9.0])}


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.1, [1.5, 2.0]), (0.05, [0.75, 1.0]), (1.0, [3.0, 4.0]), (0.0, [3.0, 4.0])],  # of the distance 5
)
def test_the_global_encoder_counts_by_strength_times_distance_at_most_wholly(
    tmp_path: Path, strength: float, expected: list[float]
) -> None:
    Mixing(tmp_path, task(1), strength).end(weights([0.0, 0.0]))
    begun = Mixing(tmp_path, task(2), strength).begin(weights([3.0, 4.0]))
    torch.testing.assert_close(begun["encoder.w"], torch.tensor(expected))
    assert begun["decoder.w"].tolist() == [9.0], "the decoder is the server's"


def test_the_first_round_of_a_stage_begins_with_what_arrived(tmp_path: Path) -> None:
    Mixing(tmp_path, task(2), 0.1).end(weights([0.0, 0.0]))
    assert Mixing(tmp_path, task(1), 0.1).begin(weights([3.0, 4.0]))["encoder.w"].tolist() == [3.0, 4.0]


def test_an_encoder_of_other_shapes_is_not_mixed_in(tmp_path: Path) -> None:
    Mixing(tmp_path, task(1), 0.1).end(weights([0.0, 0.0, 0.0]))
    assert Mixing(tmp_path, task(2), 0.1).begin(weights([3.0, 4.0]))["encoder.w"].tolist() == [3.0, 4.0]


def test_nothing_is_kept_without_it_and_what_is_kept_is_the_owners_alone_and_can_be_forgotten(tmp_path: Path) -> None:
    Mixing(tmp_path, task(1), 0.0).end(weights([1.0]))
    assert not (tmp_path / FOLDER).exists()
    Mixing(tmp_path, task(1), 0.1).end(weights([1.0]))
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / FOLDER).rglob("*")} == {0}
    forget_mixing(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_second_round_is_trained_from_another_start_and_a_repeated_one_from_the_same(
    site: Site, plan: Plan, task_for: Callable[..., Task]
) -> None:
    mixed = replace(plan, aggregation=replace(plan.aggregation, mixing=1e-3))
    cache = Cache.open(site.cache_folder)

    def answer(the_plan: Plan, stage_round: int) -> bytes:
        return train(replace(task_for("mae", plan=the_plan), stage_round=stage_round), site, cache, CPU).update

    first = answer(mixed, 1)
    second = answer(mixed, 2)
    assert first == answer(plan, 1), "there is nothing to mix yet"
    assert second != answer(plan, 2)
    assert second == answer(mixed, 2)
