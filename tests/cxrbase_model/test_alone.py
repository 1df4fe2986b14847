"""A plan on one table of pictures, as a researcher runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cxrbase_model.alone import Arrays
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.cli import main
from cxrbase_model.codec import unpack
from cxrbase_model.composition import epsilon
from cxrbase_model.export import load_classifier
from cxrbase_model.plan import Plan
from cxrbase_model.privacy import Mechanism
from cxrbase_model.rows import steps_of
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.state import norm, subtract

COUNT = 120


@pytest.fixture
def plan(small_plan: Plan) -> Plan:
    mapping: dict[str, Any] = to_mapping(small_plan)
    mapping["stages"][1] |= {"local_epochs": 6, "optimizer": {"lr": 0.1, "beta2": 0.999}, "positive_weight": 1.0}
    mapping["stages"].append({"kind": "finetune", "name": "probe", "trains": "head", "init": "stage:mae", "rounds": 1})
    mapping["stages"].append({"kind": "evaluate", "name": "test", "split": "test"})
    return read(Plan, mapping)


@pytest.fixture
def plan_file(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(to_mapping(plan)))
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Pictures that are bright where the second finding is; two of each patient."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (COUNT, 3)).astype(np.float32)
    labels[:, 2] = np.nan
    pictures = rng.integers(0, 60, (COUNT, 32, 32)) + 120 * labels[:, 1, None, None]
    np.save(folder / "pictures.npy", pictures.astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    np.save(folder / "patients.npy", np.arange(COUNT) // 2)
    return folder


def train(plan_file: Path, arrays: Path, out: Path, *more: str) -> int:
    return main(["train", str(plan_file), str(arrays), "--out", str(out), "--device", "cpu", *more])


def test_every_stage_is_trained_once_and_evaluated(
    plan_file: Path, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(plan_file, arrays, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["mae", "detect", "probe", "test", "test"]
    assert json.loads((out / "evaluations" / "detect.json").read_text())["findings"]["Nodule"]["auroc"]["value"] > 0.95
    classifier, _ = load_classifier(out / "classifier")
    assert classifier.head.out_features == 3
    assert train(plan_file, arrays, out) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:3] == [f"{name}: finished before" for name in ("mae", "detect", "probe")]
    assert again[3:] == lines[3:]


def test_stages_of_another_plan_are_not_taken_for_this_ones(
    plan: Plan, plan_file: Path, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = replace(plan, stages=plan.stages[:1])
    plan_file.write_text(yaml.safe_dump(to_mapping(first)))
    assert train(plan_file, arrays, tmp_path / "out") == 0
    plan_file.write_text(yaml.safe_dump(to_mapping(replace(first, seed=4))))
    assert train(plan_file, arrays, tmp_path / "out") == 2
    assert "mae.safetensors: was trained by another plan" in capsys.readouterr().err
    plan_file.write_text(yaml.safe_dump(to_mapping(replace(plan, stages=(plan.stages[0], plan.stages[2])))))
    assert train(plan_file, arrays, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("mae: finished before\nprobe: "), "a stage more is no other plan"


def test_two_processes_end_where_one_does(
    plan: Plan, plan_file: Path, arrays: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan_file.write_text(yaml.safe_dump(to_mapping(replace(plan, stages=plan.stages[:1]))))
    assert (
        train(plan_file, arrays, tmp_path / "one") == train(plan_file, arrays, tmp_path / "two", "--devices", "2") == 0
    )
    assert capfd.readouterr().out.count("mae: ") == 2, "the first of the two tells"
    one, two = (unpack((tmp_path / run / "stages" / "mae.safetensors").read_bytes()) for run in ("one", "two"))
    assert norm(subtract(two, one)) < 1e-3 * norm(one)


@pytest.mark.parametrize("option", ["--devices", "--micro-batch"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_number_below_one_is_refused_by_name(
    plan_file: Path, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, number: str
) -> None:
    assert train(plan_file, arrays, tmp_path / "out", option, number) == 2
    assert f"{option}: expected at least 1, found {number}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "gpus", "line"),
    [
        (["--device", "gpu"], 0, "--device: expected cpu, cuda or cuda:N, found 'gpu'"),
        (["--device", ""], 0, "--device: expected cpu, cuda or cuda:N, found ''"),
        (
            ["--device", "cuda"],
            0,
            "--device: expected cpu, or one of the GPUs that torch finds, which are 0; found cuda",
        ),
        (["--device", "cuda:2"], 2, "which are 2; found cuda:2"),
        (["--device", "cuda", "--devices", "3"], 2, "--devices: expected at most 2 with --device cuda, found 3"),
        (["--device", "cuda:1", "--devices", "2"], 2, "--devices: expected at most 1 with --device cuda:1, found 2"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    plan_file: Path, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    options: list[str], gpus: int, line: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert train(plan_file, arrays, tmp_path / "out", *options) == 2
    assert line in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_one_line(
    plan_file: Path, arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(plan_file, arrays, plan_file) == 2
    assert "--out: expected a folder, found the file" in capsys.readouterr().err


def test_an_interrupted_run_ends_in_the_same_weights(
    plan_file: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(plan_file, arrays, tmp_path / "whole") == 0
    batch, left = Arrays.batch, iter(range(5))

    def failing(self: Arrays, rows: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return batch(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Arrays, "batch", failing)
        patch.setattr(LocalCheckpoint, "is_due", lambda self: True)
        with pytest.raises(KeyboardInterrupt):
            train(plan_file, arrays, tmp_path / "parted")
    assert (tmp_path / "parted" / "interrupted.safetensors").exists()
    assert train(plan_file, arrays, tmp_path / "parted") == 0
    for name in ("mae", "detect"):
        whole, parted = (tmp_path / run / "stages" / f"{name}.safetensors" for run in ("whole", "parted"))
        assert whole.read_bytes() == parted.read_bytes()


def test_a_patient_is_in_one_split_and_all_splits_are_used(plan: Plan, arrays: Path) -> None:
    table = Arrays(arrays, plan)
    splits = {split: set(table.patients[table.rows(split)].tolist()) for split in ("train", "validation", "test")}
    assert sum(len(patients) for patients in splits.values()) == COUNT // 2
    assert len(splits["train"]) > len(splits["test"]) > len(splits["validation"]) > 0


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("pictures", np.zeros((COUNT, 16, 16), np.uint8), r"expected uint8 \[N, 32, 32\], found uint8 \[120, 16, 16\]"),
        ("labels", np.zeros((COUNT, 3)), r"expected float32 \[N, 3\], found float64 \[120, 3\]"),
        ("patients", np.zeros(7, np.int64), "expected as many pictures as labels and patients"),
        ("labels", np.array([{}], object), "expected an array that numpy.save wrote"),
    ],
)
def test_arrays_that_do_not_fit_the_plan_are_one_line(
    plan: Plan,
    plan_file: Path,
    arrays: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: Any,
    line: str,
) -> None:
    np.save(arrays / f"{name}.npy", content, allow_pickle=True)
    with pytest.raises(SettingsError, match=line):
        Arrays(arrays, plan)
    assert train(plan_file, arrays, tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("cxrbase-model: ")


def test_info_says_what_a_model_costs(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(plan_file)]) == 0
    assert "M parameters" in capsys.readouterr().out


def test_a_plan_with_privacy_trains_every_stage_under_one_promise_and_tells_its_cost(
    plan: Plan, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pretraining, fine-tuning, and the head once more on what came out of it: all noised, all counted."""
    mapping = to_mapping(plan)
    mapping["privacy"] = {"unit": "patient", "noise_multiplier": 2.0}
    mapping["stages"][1] |= {"local_epochs": 1}
    probe = mapping["stages"][2]
    probe |= {"init": "stage:detect", "positive_weight": 1.0, "local_epochs": 1, "batch_size": 8}
    private = read(Plan, mapping)
    path = tmp_path / "private.yaml"
    path.write_text(yaml.safe_dump(mapping))
    assert train(path, arrays, tmp_path / "private") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "loss not told under privacy" in line] == lines[:3]
    patients = len(np.unique(Arrays(arrays, private).patients[Arrays(arrays, private).rows("train")]))
    rate, one, two = 8 / patients, steps_of(patients, 8, 2), steps_of(patients, 8, 1)
    spent = [Mechanism("patient", 2.0, rate, steps) for steps in (one, one, two)]
    expected = f"privacy: epsilon {epsilon(spent, 'patient', 1e-5):.3g} at delta 1e-05 for each patient, noise from a secure source"
    assert lines[-1] == expected
    states = {
        name: unpack((tmp_path / "private" / "stages" / f"{name}.safetensors").read_bytes())
        for name in ("detect", "probe")
    }
    moved = {key for key, tensor in states["detect"].items() if not torch.equal(tensor, states["probe"][key])}
    assert moved == {key for key in states["detect"] if key.startswith("head")}, "the head alone"
    assert train(path, arrays, tmp_path / "private") == 0
    assert capsys.readouterr().out.splitlines()[-1] == expected, "what was finished before has cost the same"
