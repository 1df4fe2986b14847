"""The optimizer's moments between rounds."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import torch

from client.moments import FOLDER, Moments, forget_moments
from cxrbase_model.messages import Task


def moments(private: Path, number: int, *, run: str = "run", stage: str = "mae") -> Moments:
    return Moments(private, Task("pretrain", run, number, stage, number, stage, "text", "digest"))


def kept(private: Path, number: int, **where: str) -> float | None:
    found = moments(private, number, **where).before()
    return None if found is None else float(found["step.w"])


def train(private: Path, number: int, **where: str) -> float | None:
    """What a round does: start from what was kept before, and keep its own number."""
    memory = moments(private, number, **where)
    found = memory.before()
    memory.keep({"step.w": torch.tensor(float(number))})
    return None if found is None else float(found["step.w"])


def test_a_round_starts_from_the_moments_of_the_one_before(tmp_path: Path) -> None:
    assert [train(tmp_path, number) for number in (1, 2, 3, 4)] == [None, 1, 2, 3]


def test_a_round_that_is_repeated_starts_from_the_same_moments(tmp_path: Path) -> None:
    assert [train(tmp_path, number) for number in (1, 2, 3, 3, 4)] == [None, 1, 2, 2, 3]


def test_a_round_that_was_missed_costs_no_moments(tmp_path: Path) -> None:
    assert [train(tmp_path, number) for number in (1, 2, 5)] == [None, 1, 2]


def test_a_run_that_begins_again_finds_nothing_of_the_run_before(tmp_path: Path) -> None:
    assert [train(tmp_path, number) for number in (1, 2, 3, 1)] == [None, 1, 2, None]
    assert kept(tmp_path, 2) == 1


def test_stages_and_runs_keep_their_own_and_only_the_newest_stay(tmp_path: Path) -> None:
    train(tmp_path, 1)
    assert (kept(tmp_path, 2, stage="detect"), kept(tmp_path, 2, run="other"), kept(tmp_path, 2)) == (None, None, 1)
    for number in range(1, 9):
        train(tmp_path, number, stage="detect")
    assert len(list((tmp_path / FOLDER).rglob("*.safetensors"))) == 3
    for name in "abcdef":
        train(tmp_path, 1, stage=name)
    assert len(list((tmp_path / FOLDER).iterdir())) == 4


def test_a_clock_that_was_ahead_once_does_not_cost_a_stage_what_it_has_just_kept(tmp_path: Path) -> None:
    ahead = time.time() + 86_400
    for name in "abcd":
        train(tmp_path, 1, stage=name)
    for folder in (tmp_path / FOLDER).iterdir():
        os.utime(folder, (ahead, ahead))
    assert [train(tmp_path, number) for number in (1, 2)] == [None, 1]
    assert len(list((tmp_path / FOLDER).iterdir())) == 4


def test_what_a_process_that_died_while_it_wrote_has_left_is_removed(tmp_path: Path) -> None:
    train(tmp_path, 1)
    (folder,) = (tmp_path / FOLDER).iterdir()
    left = [folder / ".000001.safetensors.1.tmp", tmp_path / FOLDER / ".interrupted.safetensors.1.tmp"]
    being_written = folder / ".000002.safetensors.1.tmp"
    for path in (*left, being_written):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (time.time() - 86_400,) * 2)
    train(tmp_path, 2)
    assert [path.exists() for path in (*left, being_written)] == [False, False, True]


def test_a_damaged_file_costs_the_moments_and_not_the_round(tmp_path: Path) -> None:
    train(tmp_path, 1)
    (file,) = (tmp_path / FOLDER).rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    assert kept(tmp_path, 2) is None


@pytest.mark.parametrize("depth", ["*", "*/*"])
def test_only_the_owner_may_read_them_and_they_can_be_forgotten(tmp_path: Path, depth: str) -> None:
    train(tmp_path, 1)
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / FOLDER).glob(depth)] == [0]
    forget_moments(tmp_path)
    forget_moments(tmp_path)
    assert not (tmp_path / FOLDER).exists()
