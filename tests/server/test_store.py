"""A commit is there whole or not at all, whatever is killed when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from cxrbase_model.state import State
from server.store import RunStore, StoreError


def plan(**changes: Any) -> Plan:
    mapping: dict[str, Any] = {
        "schema": 1,
        "name": "test",
        "data": {"findings": ["Nodule"], "image_size": 32},
        "model": {"encoder": "vit_micro", "patch_size": 8},
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": 9}],
        "federation": {"keep_checkpoints": 2},
    }
    return read(Plan, mapping | changes)


def state(value: float) -> State:
    return {"encoder.w": torch.full((4,), value)}


def commit(store: RunStore, number: int, *, ends: bool = False) -> None:
    store.commit({"round": number, "stage": "mae"}, state(number), ends_stage=ends)


def test_a_committed_round_is_read_back(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    commit(store, 1)
    assert [record["round"] for record in store.records()] == [0, 1]
    assert store.next_round == 2
    assert torch.equal(store.state(1)["encoder.w"], state(1)["encoder.w"])
    assert store.run["plan_digest"] == plan().digest


def test_only_the_newest_checkpoints_keep_their_weights(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    for number in range(5):
        commit(store, number)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["round-00003", "round-00004"]
    assert len(store.records()) == 5
    with pytest.raises(StoreError, match="not there"):
        store.state(1)


def test_the_newest_checkpoints_are_those_of_the_highest_rounds_however_many_digits_these_have(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    for number in range(99_998, 100_001):
        commit(store, number)
    assert torch.equal(store.state(100_000)["encoder.w"], state(100_000)["encoder.w"])
    assert torch.equal(store.state(99_999)["encoder.w"], state(99_999)["encoder.w"])


def test_the_final_weights_of_a_stage_outlive_its_checkpoints(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 1, ends=True)
    for number in range(2, 6):
        commit(store, number)
    assert torch.equal(store.stage_state("mae")["encoder.w"], state(1)["encoder.w"])


def test_a_kill_between_the_rename_and_the_record_loses_nothing(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    commit(store, 1, ends=True)
    lines = (tmp_path / "run/rounds.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run/rounds.jsonl").write_bytes(lines[0])
    (tmp_path / "run/stages/mae.safetensors").unlink()
    again = RunStore.resume(tmp_path / "run", plan())
    assert again.next_round == 2
    assert torch.equal(again.stage_state("mae")["encoder.w"], state(1)["encoder.w"])


@pytest.mark.parametrize("lost", ["record.json", "state.safetensors"])
def test_a_kill_while_an_old_checkpoint_is_removed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def killed(folder: Path, **_: object) -> None:
        (folder / lost).unlink()
        raise KeyboardInterrupt

    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0, ends=True)
    commit(store, 1)
    with monkeypatch.context() as kill:
        kill.setattr("server.store.shutil.rmtree", lambda folder, **how: killed(folder) if folder.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            commit(store, 2)
    resumed = RunStore.resume(tmp_path / "run", plan())
    assert resumed.next_round == 3
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["round-00001", "round-00002"]


def test_half_a_checkpoint_of_a_release_that_removed_them_in_place_is_cleared_away(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    commit(store, 1)
    (tmp_path / "run" / "checkpoints" / "round-00000" / "record.json").unlink()
    assert RunStore.resume(tmp_path / "run", plan()).next_round == 2
    assert not (tmp_path / "run" / "checkpoints" / "round-00000").exists()


def test_a_record_is_parsed_once_and_one_that_another_process_has_added_is_seen(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    reader = RunStore(tmp_path / "run", plan())
    assert reader.records() == []
    commit(store, 0)
    first = reader.records()
    commit(store, 1)
    with (tmp_path / "run/rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 2')
        file.flush()
        assert [record["round"] for record in reader.records()] == [0, 1]
        file.write(b', "stage": "mae"}\n')
    again = reader.records()
    assert [record["round"] for record in again] == [0, 1, 2]
    assert again[0] is first[0]
    assert len(first) == 1, "a list that was given out does not grow"


def test_records_that_were_put_back_are_read_anew(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    kept = (tmp_path / "run/rounds.jsonl").read_bytes()
    commit(store, 1)
    assert len(store.records()) == 2
    (tmp_path / "run/rounds.jsonl").write_bytes(kept)
    assert [record["round"] for record in store.records()] == [0]


def test_a_torn_last_line_and_a_draft_are_cleared_away(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    commit(store, 1)
    path = tmp_path / "run/rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    draft = tmp_path / "run/checkpoints/.round-00002.draft"
    draft.mkdir()
    (draft / "state.safetensors").write_bytes(b"half")
    again = RunStore.resume(tmp_path / "run", plan())
    assert [record["round"] for record in again.records()] == [0, 1]
    assert not draft.exists()


def test_a_run_is_not_overwritten_and_not_resumed_with_another_plan(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", plan())
    with pytest.raises(StoreError, match="--resume"):
        RunStore.create(tmp_path / "run", plan())
    with pytest.raises(StoreError, match="started with plan"):
        RunStore.resume(tmp_path / "run", plan(seed=3))
    with pytest.raises(StoreError, match="no run to resume"):
        RunStore.resume(tmp_path / "other")


def test_each_session_is_written_down(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", plan())
    commit(store, 0)
    RunStore.resume(tmp_path / "run")
    sessions = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert [session["from_round"] for session in sessions] == [0, 1]
