"""The server's steps against Flower's strategies, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi

from cxrbase_model.aggregation import Adagrad, Adam, Add, Momentum, Step, Yogi
from cxrbase_model.state import State
from server.rules.step import step
from tests.server.rules.flower import flowers_weights

START = np.random.default_rng(0).normal(size=9).astype(np.float32)
LATE = 10**6  # a round in which Flower's correction for the first rounds has died away


def ours(rule: Step, targets: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The weights after each round in which the hospitals' mean update points towards a target."""
    weights, memory, seen = torch.from_numpy(START.copy()), State(), []
    for target in targets:
        move, memory = step(rule, {"w": torch.from_numpy(target) * 0.1}, memory)
        weights = weights + move["w"]
        seen.append(weights.numpy().copy())
    return seen


TARGETS = [np.random.default_rng(seed).normal(size=9).astype(np.float32) for seed in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("rule", "strategy"),
    [
        (Adagrad(lr=0.1, beta1=0.0, tau=0.01), FedAdagrad(eta=0.1, tau=0.01)),
        (Adam(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01), FedAdam(eta=0.1, beta_1=0.8, beta_2=0.95, tau=0.01)),
        (Yogi(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01), FedYogi(eta=0.1, beta_1=0.8, beta_2=0.95, tau=0.01)),
    ],
    ids=["fedadagrad", "fedadam", "fedyogi"],
)
def test_an_adaptive_step_is_flowers_once_both_start_from_the_papers_second_moment(rule: Step, strategy: Any) -> None:
    weights = START.copy()
    strategy.v_t = {"w": np.full_like(START, 0.01**2)}  # the paper's start; Flower's is zero
    for target, mine in zip(TARGETS, ours(rule, TARGETS), strict=True):
        strategy.current_arrays = {"w": weights}
        weights = flowers_weights(strategy, [weights + 0.1 * target], [1], LATE).astype(np.float32)
        np.testing.assert_allclose(mine, weights, rtol=1e-4, atol=1e-5)


def test_momentum_is_flowers() -> None:
    strategy = FedAvgM(server_learning_rate=0.5, server_momentum=0.9)
    strategy.current_arrays = ArrayRecord({"w": Array(START)})
    weights = START
    for target, mine in zip(TARGETS, ours(Momentum(lr=0.5), TARGETS), strict=True):
        weights = flowers_weights(strategy, [weights + 0.1 * target], [1])
        np.testing.assert_allclose(mine, weights, rtol=1e-5, atol=1e-6)


def test_the_first_adaptive_step_by_hand() -> None:
    move, memory = step(Adam(lr=1.0, beta1=0.5, beta2=0.75, tau=0.2), {"w": torch.tensor([0.4])}, {})
    second = 0.75 * 0.04 + 0.25 * 0.16
    torch.testing.assert_close(move["w"], torch.tensor([0.2 / (second**0.5 + 0.2)]))
    torch.testing.assert_close(memory, {"first.w": torch.tensor([0.2]), "second.w": torch.tensor([second])})


def test_adding_is_the_update_itself_and_remembers_nothing() -> None:
    update = {"w": torch.tensor([0.1, -0.3])}
    assert step(Add(), update, {}) == (update, {})
