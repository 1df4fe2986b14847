"""TensorBoard events, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrbase_model.kit import check_name
from cxrbase_model.settings import SettingsError
from server.board import Board


def record(number: int, kind: str = "pretrain", **changes: Any) -> dict[str, Any]:
    hospital = {
        "site": "a",
        "status": "admitted",
        "loss": 0.5 / number,
        "seconds": 2.0,
        "update_norm": 3.0,
        "metrics": {},
    }
    silent: dict[str, Any] = {"site": "b", "status": "silent", "loss": None, "seconds": 0.0, "metrics": {}}
    return {
        "kind": kind, "round": number, "loss": 0.5 / number, "seconds": 4.0, "metrics": {"validation_loss": 1.0 / number},
        "bytes_sent": 100, "bytes_received": 50, "hospitals": [hospital, silent],
    } | changes  # fmt: skip


def read(folder: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard" / name)).Reload()
    return {
        tag: [(each.step, round(each.value, 6)) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def write(folder: Path, records: list[dict[str, Any]], after: int = -1) -> None:
    board = Board(folder, purge_after_round=after)
    for each in records:
        board.write(each)
    board.close()


def test_each_round_is_there_for_the_federation_and_for_each_hospital(tmp_path: Path) -> None:
    write(tmp_path, [record(1), record(2)])
    whole, own = read(tmp_path, "_global"), read(tmp_path, "a")
    assert whole["pretrain/loss"] == [(1, 0.5), (2, 0.25)]
    assert whole["pretrain/validation_loss"] == [(1, 1.0), (2, 0.5)]
    assert whole["pretrain/bytes/sent"] == [(1, 100), (2, 100)]
    assert whole["pretrain/hospitals"] == [(1, 1), (2, 1)], "the silent one is not counted"
    assert own["pretrain/loss"] == whole["pretrain/loss"]
    assert own["pretrain/update_norm"] == [(1, 3.0), (2, 3.0)]
    assert read(tmp_path, "b") == {"pretrain/seconds": [(1, 0.0), (2, 0.0)]}


def test_an_evaluation_shows_each_finding_that_could_be_measured(tmp_path: Path) -> None:
    findings = {"Nodule": {"auroc": {"value": 0.75}}, "Edema": {"auroc": None}}
    hospital = record(1)["hospitals"][0] | {
        "evaluations": {"detect": {"mean_auroc": {"value": 0.75}, "findings": findings}}
    }
    write(tmp_path, [record(3, "evaluate", hospitals=[hospital])])
    own = read(tmp_path, "a")
    assert own["evaluate/auroc/detect/mean"] == own["evaluate/auroc/detect/Nodule"] == [(3, 0.75)]
    assert "evaluate/auroc/detect/Edema" not in own


def test_a_round_that_is_run_again_is_shown_once(tmp_path: Path) -> None:
    write(tmp_path, [record(1), record(2)])
    write(tmp_path, [record(2, loss=9.0)], after=1)
    assert read(tmp_path, "_global")["pretrain/loss"] == [(1, 0.5), (2, 9.0)]


@pytest.mark.parametrize("name", ["global", "Global"])
def test_a_hospital_of_any_name_has_curves_of_its_own(tmp_path: Path, name: str) -> None:
    write(tmp_path, [record(1, loss=9.0, hospitals=[record(1)["hospitals"][0] | {"site": name}])])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert read(tmp_path, name)["pretrain/loss"] == [(1, 0.5)]
    (whole,) = (folder.name for folder in (tmp_path / "tensorboard").iterdir() if folder.name != name)
    with pytest.raises(SettingsError):
        check_name("hospitals", whole)


def test_what_hospitals_tell_of_themselves_is_no_curve(tmp_path: Path) -> None:
    write(tmp_path, [{"kind": "describe"}])
    assert not (tmp_path / "tensorboard").exists()
