"""The rank rules on cases computed by hand, and against Flower's strategies and plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, MultiKrum
from flwr.serverapp.strategy import Krum as FlowersKrum
from numpy.typing import NDArray

from cxrbase_model.aggregation import GeometricMedian, Krum, Median, TrimmedMean
from server.rules import spool as spools
from server.rules.gathering import gathering
from server.rules.rank import krum, median, trimmed_mean, weiszfeld
from tests.server.rules.flower import flowers_weights

RankRule = Median | TrimmedMean | Krum | GeometricMedian


def rows(count: int, size: int = 11, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def result(rule: RankRule, updates: NDArray[np.float32], folder: Path) -> NDArray[np.float32]:
    with gathering(rule, {"w": torch.zeros(updates.shape[1])}, folder, None) as gathered:
        for index, row in enumerate(updates):
            gathered.fold(f"site-{index:03}", {"w": torch.from_numpy(row)}, 1 + index)
        return gathered.result()["w"].numpy()


def distances(points: NDArray[np.floating]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(points[:, None].astype(np.float64) - points[None])
    return np.asarray(squares.sum(axis=2), np.float64)


@pytest.mark.parametrize("count", [3, 4, 7, 8])
def test_the_median_is_flowers(count: int, tmp_path: Path) -> None:
    updates = rows(count)
    theirs = flowers_weights(FedMedian(), list(updates), [1] * count)
    np.testing.assert_allclose(result(Median(), updates, tmp_path), theirs, rtol=1e-6)


def test_the_trimmed_mean_is_flowers_where_the_share_is_a_whole_number_of_hospitals(tmp_path: Path) -> None:
    updates = rows(10)
    theirs = flowers_weights(FedTrimmedAvg(beta=0.2), list(updates), [1] * 10)
    np.testing.assert_allclose(result(TrimmedMean(share=0.2), updates, tmp_path), theirs, rtol=1e-5)


@pytest.mark.parametrize(("count", "left"), [(3, [2.0]), (4, [2.0, 3.0]), (6, [3.0, 4.0])])
def test_a_share_is_rounded_up_so_that_few_hospitals_are_trimmed_too(count: int, left: list[float]) -> None:
    column = np.arange(1, count + 1, dtype=np.float32)[:, None]
    assert trimmed_mean(column, 0.3) == pytest.approx(np.mean(left))


@pytest.mark.parametrize("seed", range(3))
def test_krum_chooses_the_update_that_flower_chooses(seed: int, tmp_path: Path) -> None:
    updates = rows(7, seed=seed)
    updates[2] += 30
    theirs = flowers_weights(FlowersKrum(num_malicious_nodes=2), list(updates), [1] * 7)
    np.testing.assert_array_equal(result(Krum(attackers=2), updates, tmp_path), theirs)


def test_multi_krum_is_flowers(tmp_path: Path) -> None:
    updates = rows(9, seed=4)
    theirs = flowers_weights(MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4), list(updates), [1] * 9)
    np.testing.assert_allclose(result(Krum(attackers=2, selected=4), updates, tmp_path), theirs, rtol=1e-5)


def test_krum_by_hand_leaves_the_far_one_and_the_edge_out() -> None:
    points = np.array([[0.0], [1.0], [2.1], [50.0]])
    assert krum(distances(points), attackers=1, selected=2).tolist() == [0, 1], "each is 1 from its nearest"
    assert krum(distances(np.array([[0.0], [2.0], [3.0], [4.5], [90.0]])), attackers=1, selected=1).tolist() == [2]


def test_the_geometric_median_of_a_line_is_the_point_in_the_middle() -> None:
    weights = weiszfeld(distances(np.array([[0.0], [1.0], [10.0]])), 1e-6)
    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-4)


def test_the_geometric_median_of_a_square_is_its_centre_and_of_a_triangle_its_fermat_point() -> None:
    square = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(weiszfeld(distances(square), 1e-6) @ square, [1.0, 1.0], atol=1e-9)
    triangle = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(weiszfeld(distances(triangle), 1e-6) @ triangle, [0.0, 1 / np.sqrt(3)], atol=1e-6)


def test_no_small_step_away_from_the_geometric_median_comes_closer_to_all(tmp_path: Path) -> None:
    updates = rows(8, size=5)
    centre = result(GeometricMedian(), updates, tmp_path).astype(np.float64)

    def total(point: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(updates - point, axis=1).sum())

    steps = np.random.default_rng(1).normal(size=(200, 5)) * 1e-3
    assert min(total(centre + step) for step in steps) > total(centre)


def test_the_geometric_median_follows_the_majority_that_is_of_one_mind() -> None:
    points = np.array([[1.0], [1.0], [1.0], [1.0], [7.0], [-3.0]])
    np.testing.assert_allclose(weiszfeld(distances(points), 1e-6) @ points, [1.0], atol=1e-5)
    np.testing.assert_allclose(weiszfeld(np.zeros((3, 3)), 1e-6), [1 / 3] * 3)
    np.testing.assert_allclose(weiszfeld(np.zeros((1, 1)), 1e-6), [1.0])


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), Krum(), Krum(selected=3), GeometricMedian()])
def test_slices_are_seams_that_nobody_sees(rule: RankRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = rows(6, size=1001)
    whole = result(rule, updates, tmp_path)
    monkeypatch.setattr(spools, "_SLICE_BYTES", 6 * 4 * 10)
    np.testing.assert_allclose(result(rule, updates, tmp_path), whole, rtol=1e-6)


def test_the_median_of_an_even_number_does_not_overflow() -> None:
    assert median(np.full((2, 1), 3e38, np.float32))[0] == pytest.approx(3e38)
