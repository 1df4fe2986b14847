"""SCAFFOLD's arithmetic against the paper's algorithm in plain numpy, and the plans that refuse it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cxrbase_model.plan import Plan, plan_from_text, plan_to_text
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.variates import divided, prefixed, steered
from tests.server.hospitals import plan

Vector = NDArray[np.float64]
RATES = [0.02, 0.05, 0.03, 0.01, 0.04]


class Quadratic(nn.Module):
    """Half of x' A x - 2 b' x, summed over both parameters; its gradient is A x - b."""

    def __init__(self, start: Vector) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.from_numpy(start).clone())

    def loss(self, matrix: Vector, offset: Vector) -> torch.Tensor:
        return 0.5 * self.x @ torch.from_numpy(matrix) @ self.x - torch.from_numpy(offset) @ self.x


def problem() -> list[tuple[Vector, Vector]]:
    """Two hospitals whose gradients differ everywhere."""
    rng = np.random.default_rng(0)
    found = []
    for curvature in (1.0, 6.0):
        root = rng.normal(size=(4, 4))
        found.append((curvature * (root @ root.T / 4 + np.eye(4)), 3 * rng.normal(size=4)))
    return found


def optimum() -> Vector:
    (first, left), (second, right) = problem()
    return np.asarray(np.linalg.solve(first + second, left + right))


def descended(start: Vector, matrix: Vector, offset: Vector, correction: Vector) -> tuple[Vector, Vector]:
    """The weights after local SGD with torch, and the gradients' path as `steered` follows it."""
    model = Quadratic(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with steered(model, {"x": torch.from_numpy(correction)}) as path:
        for rate in RATES:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            torch.autograd.backward(model.loss(matrix, offset))
            optimizer.step()
    return model.x.detach().numpy(), path.mean()["x"].numpy().astype(np.float64)


def plain(rounds: int) -> Vector:
    """Algorithm 1 of the paper with option II, all hospitals in each round, a global rate of 1."""
    x, c, own = np.zeros(4), np.zeros(4), [np.zeros(4), np.zeros(4)]
    for _ in range(rounds):
        moves, changes = [], []
        for number, (matrix, offset) in enumerate(problem()):
            y = x.copy()
            for rate in RATES:
                y = y - rate * (matrix @ y - offset - own[number] + c)
            after = own[number] - c + (x - y) / sum(RATES)
            moves.append(y - x)
            changes.append(after - own[number])
            own[number] = after
        x, c = x + np.mean(moves, axis=0), c + np.mean(changes, axis=0)
    return x


def steered_rounds(rounds: int, *, corrected: bool) -> Vector:
    x, c, own = np.zeros(4), np.zeros(4), [np.zeros(4), np.zeros(4)]
    for _ in range(rounds):
        ends = [
            descended(x, matrix, offset, (c - own[number]) * corrected)
            for number, (matrix, offset) in enumerate(problem())
        ]
        own = [after for _, after in ends]
        x, c = np.mean([end for end, _ in ends], axis=0), np.mean(own, axis=0)
    return x


@pytest.mark.parametrize("rounds", [1, 2, 5, 40])
def test_with_sgd_it_is_the_papers_second_option_for_any_schedule(rounds: int) -> None:
    np.testing.assert_allclose(steered_rounds(rounds, corrected=True), plain(rounds), rtol=1e-5, atol=1e-6)


def test_the_plain_mean_drifts_and_scaffold_reaches_the_optimum() -> None:
    assert float(np.abs(steered_rounds(150, corrected=False) - optimum()).max()) > 0.03
    np.testing.assert_allclose(steered_rounds(150, corrected=True), optimum(), atol=1e-3)


def adapted(*, corrected: bool, size: float) -> Vector:
    """Thirty rounds of AdamW, whose moments stay in each hospital, on gradients of that size."""
    x, c, own = np.zeros(4), np.zeros(4), [np.zeros(4), np.zeros(4)]
    states: dict[int, dict[str, Any]] = {}
    for number in range(30):
        ends, paths = [], []
        for hospital, (matrix, offset) in enumerate(problem()):
            model = Quadratic(x)
            optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
            if hospital in states:
                optimizer.load_state_dict(states[hospital])
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / 30)
            with steered(model, {"x": torch.from_numpy((c - own[hospital]) * corrected)}) as path:
                for _ in range(20):
                    optimizer.zero_grad()
                    torch.autograd.backward(model.loss(size * matrix, size * offset))
                    optimizer.step()
            states[hospital] = optimizer.state_dict()
            ends.append(model.x.detach().numpy())
            paths.append(path.mean()["x"].numpy().astype(np.float64))
        x, c, own = np.mean(ends, axis=0), np.mean(paths, axis=0), paths
    return x


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_adamw_drifts_without_it_and_not_with_it_whatever_the_gradients_size(size: float) -> None:
    assert float(np.linalg.norm(adapted(corrected=False, size=size) - optimum())) > 0.1
    assert float(np.linalg.norm(adapted(corrected=True, size=size) - optimum())) < 0.01


def test_after_the_block_and_for_other_models_nothing_is_corrected() -> None:
    models = [Quadratic(np.zeros(4)), Quadratic(np.zeros(4))]
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0) for model in models]

    def move(index: int) -> float:
        before = float(models[index].x[0].detach())
        models[index].x.grad = torch.ones(4, dtype=torch.float64)
        optimizers[index].step()
        return float(models[index].x[0].detach()) - before

    with steered(models[0], {"x": torch.full((4,), 2.0)}) as path:
        assert (move(0), move(1)) == (-3.0, -1.0)
    assert move(0) == -1.0
    assert path.mean()["x"].tolist() == [1.0] * 4, "the gradient before it was corrected"


def test_what_travels_beside_the_weights_comes_apart_again() -> None:
    whole = {"a.w": torch.tensor([3.0, 4.0])} | prefixed({"a.w": torch.tensor([1e6, 0.0])})
    weights, variates = divided(whole)
    assert (list(weights), list(variates)) == (["a.w"], ["a.w"])


def planned(federation: dict[str, Any] | None = None, **sections: Any) -> Plan:
    aggregation = {"scaffold": True} | sections.pop("aggregation", {})
    base = plan(**({"weighting": "uniform", "quorum": 3} | (federation or {})))
    return read(Plan, to_mapping(base) | {"aggregation": aggregation} | sections)


def test_a_plan_with_scaffold_travels_whole() -> None:
    assert plan_from_text(plan_to_text(planned())) == planned()
    coarse = planned(transport={"update": "int8", "broadcast": "bf16"}, aggregation={"proximal": 0.1})
    assert coarse.aggregation.scaffold


@pytest.mark.parametrize(
    ("message", "sections"),
    [
        (r"federation.weighting: expected uniform.*found examples", {"federation": {"weighting": "examples"}}),
        (r"aggregation.rule: expected mean.*found median", {"aggregation": {"rule": {"kind": "median"}}}),
        (r"aggregation.rule: expected mean.*found angle-mean", {"aggregation": {"rule": {"kind": "angle-mean"}}}),
        (r"aggregation.mixing: expected 0.*found 0.1", {"aggregation": {"mixing": 0.1}}),
        (r"transport.update: .*found topk", {"transport": {"update": "topk"}}),
        (r"aggregation.secure: expected none", {"aggregation": {"secure": {}}}),
        (r"aggregation.privacy: expected none", {"aggregation": {"privacy": {}}}),
    ],
)
def test_what_variates_do_not_go_with_is_refused(message: str, sections: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=message):
        planned(**sections)
