"""What rounding leaves out of an update is owed, paid later, and kept private."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from client.feedback import FOLDER, Residual, forget_residuals
from cxrbase_model.codec import decode
from cxrbase_model.messages import Task
from cxrbase_model.state import State, norm, size, subtract
from cxrbase_model.transport import EXACT, Packing

COARSE = [Packing("int8"), Packing("bf16", "zstd"), Packing("topk", "zstd", 0.2)]


def update(number: int) -> State:
    return {"w": torch.randn(6, 40, generator=torch.Generator().manual_seed(number))}


def leaves(private: Path, number: int, packing: Packing, taken_in: int | None = None, factor: float = 1.0) -> bytes:
    """The bytes of a round; taken_in: the round whose update the server took in last, the one before if None."""
    before = number - 1 if taken_in is None else taken_in
    task = Task("pretrain", "run", number, "mae", number, "mae", "text", "digest", control_round=before)
    return Residual(private, task).encode({"w": factor * update(number)["w"]}, packing)


def total(states: list[State]) -> torch.Tensor:
    return torch.stack([state["w"] for state in states]).sum(dim=0)


@pytest.mark.parametrize("packing", COARSE, ids=str)
def test_over_many_rounds_no_more_is_missing_than_one_rounding(tmp_path: Path, packing: Packing) -> None:
    numbers = range(1, 31)
    arrived = [decode(leaves(tmp_path, number, packing), packing, 240) for number in numbers]
    missing = total([update(number) for number in numbers]) - total(arrived)
    once = norm(subtract(update(30), arrived[-1]))
    assert 0 < float(missing.norm()) < 1.5 * once


@pytest.mark.parametrize("packing", COARSE, ids=str)
def test_a_round_that_is_repeated_sends_the_same_bytes(tmp_path: Path, packing: Packing) -> None:
    sent = [leaves(tmp_path, number, packing) for number in (1, 2, 3, 3, 2)]
    assert sent[2] == sent[3]
    assert sent[2] != leaves(tmp_path / "another", 3, packing), "what is owed is part of it"


@pytest.mark.parametrize("packing", COARSE, ids=str)
def test_updates_that_the_server_did_not_take_in_leave_no_debt_and_pay_none(tmp_path: Path, packing: Packing) -> None:
    for number in (1, 2):
        assert leaves(tmp_path / "a", number, packing) == leaves(tmp_path / "b", number, packing)
    for number in (3, 4, 5):  # far too long, and rejected by the server each time
        leaves(tmp_path / "a", number, packing, taken_in=2, factor=1000.0)
    assert leaves(tmp_path / "a", 6, packing, taken_in=2) == leaves(tmp_path / "b", 6, packing, taken_in=2)
    assert leaves(tmp_path / "a", 7, packing) == leaves(tmp_path / "b", 7, packing)
    assert len(list((tmp_path / "a").rglob("*.safetensors"))) == 2


def test_who_was_never_taken_in_owes_nothing(tmp_path: Path) -> None:
    leaves(tmp_path, 1, COARSE[0])
    assert leaves(tmp_path, 2, COARSE[0], taken_in=0) == leaves(tmp_path / "new", 2, COARSE[0], taken_in=0)


def test_an_exact_packing_owes_nothing_and_keeps_no_file(tmp_path: Path) -> None:
    assert torch.equal(decode(leaves(tmp_path, 1, EXACT), EXACT, size(update(1)))["w"], update(1)["w"])
    assert not (tmp_path / FOLDER).exists()


def test_an_update_that_is_not_finite_leaves_no_debt(tmp_path: Path) -> None:
    task = Task("pretrain", "run", 1, "mae", 1, "mae", "text", "digest")
    Residual(tmp_path, task).encode({"w": torch.full((2, 2), torch.nan)}, Packing("int8"))
    assert not (tmp_path / FOLDER).exists()


def test_only_the_owner_may_read_it_and_it_can_be_forgotten(tmp_path: Path) -> None:
    leaves(tmp_path, 1, Packing("int8"))
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / FOLDER).rglob("*")} == {0}
    forget_residuals(tmp_path)
    assert not (tmp_path / FOLDER).exists()
