"""A study trains every job once, leaves a hospital out of everything, and goes on where it stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from client.archive.pixels import equalized, fit
from cxrbase_model.metrics import auroc, patient_weights, resampled_auroc
from cxrbase_model.plan import DataSpec
from cxrbase_model.rows import balanced_rows
from cxrbase_model.runtime import Runtime
from cxrbase_model.settings import SettingsError
from sim.cli import main
from sim.pool import Pool
from sim.study import jobs, read_study
from sim.study_bench import Bench
from sim.study_table import Outcome, interval

PLAN: dict[str, Any] = {
    "schema": 1, "name": "tiny",
    "data": {"findings": ["Pneumonia"], "image_size": 32, "validation": 0.2, "test": 0.4},
    "model": {"encoder": "vit_micro", "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
    "stages": [
        {"kind": "pretrain", "name": "mae", "rounds": 1, "batch_size": 8, "mask_ratio": 0.5},
        {"kind": "finetune", "name": "full", "rounds": 1, "batch_size": 4},
        {"kind": "finetune", "name": "probe", "rounds": 1, "batch_size": 4, "trains": "head", "pooling": "attentive"},
    ],
}  # fmt: skip
STUDY: dict[str, Any] = {
    "plan": "plan.yaml", "hospitals": {"kind": "folders"}, "seeds": [1], "pretrained_seed": 1, "unseen": ["west"], "steps": 2,
    "labels": [{"labels": 0.5, "draws": 2, "steps": 3, "looks": 2, "reference_draws": 1}], "scratch_lr": 0.001, "recipe": "all",
    "recipes": [{"name": "plain", "init": "random", "head": "erased"}, {"name": "all", "intensity": "equalize", "balance": "within"}],
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two hospitals of thirty patients, the plan and the study."""
    rng = np.random.default_rng(0)
    for hospital in ("east", "west"):
        images = tmp_path / "data" / hospital / "images"
        images.mkdir(parents=True)
        lines = ["image,patient_id,findings"]
        for number in range(30):
            Image.fromarray(rng.integers(0, 256, (160, 160), dtype=np.uint8)).save(images / f"{number}.png")
            lines.append(f"images/{number}.png,p{number},{'Pneumonia' if number % 2 else 'No Finding'}")
        (images.parent / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def _run(study: Path, *more: str) -> int:
    return main(
        [
            "study",
            str(study / "study.yaml"),
            "--data",
            str(study / "data"),
            "--out",
            str(study / "out"),
            "--workers",
            "1",
            *more,
        ]
    )


def test_a_study_writes_its_tables_and_goes_on_where_it_stopped(study: Path) -> None:
    assert _run(study) == 0
    text = (study / "out" / "study.md").read_text()
    assert "| west | plain |" in text
    assert "| west | all |" in text
    assert re.search(r"\| 50% \| 1 \| probe \| east \| 0\.\d+ \| 0\.\d+ \| [+-]0\.\d+ \(.*\), [01] of 1 \|", text)
    page = (study / "out" / "study.html").read_text()
    assert page.count("data:image/png") == 4 * 4  # two hospitals, two labels, four pictures of each
    assert "west: plain" in page
    assert "AUROC of resnet18" in page
    assert (study / "out" / "pretrained" / "equalize-west-1" / "config.json").exists()
    done = sorted((study / "out" / "jobs").glob("*.npz"))
    assert len(done) == 2 + 2 * 4 + 1  # two recipes; two draws of both trainings from both starts; one of the reference
    assert re.search(r"\| 50% \| \d+ \| resnet18 \| scratch \| east \| 0\.\d+ \(.*\), [01] of 1 \|", text)
    assert re.search(r"\| 50% \| \d+ \| full \| pretrained \| east \| 0\.\d+ \(", text)
    assert (
        text.count(" of 2 |") == 3
    )  # how often all but full training from scratch were ahead where there are enough of both classes
    before, kept = done[0].read_bytes(), done[1].stat().st_mtime_ns
    done[0].unlink()
    assert _run(study) == 0
    assert done[0].read_bytes() == before
    assert done[1].stat().st_mtime_ns == kept


def test_the_hospital_left_out_is_in_no_training_row_and_all_of_it_is_tested(study: Path) -> None:
    assert _run(study) == 0
    pool = Pool(sorted((study / "out" / "pictures" / "as-is" / "hospitals").glob("*/SITE.yaml")))
    west = pool.names.index("west")
    assert not (pool.hospitals[pool.rows(0, "west")] == west).any()
    with np.load(study / "out" / "jobs" / "full-plain-random-1-without-west-1.npz") as found:
        assert found["rows"].tolist() == pool.of("west").tolist()
    assert len(np.unique(pool.patients)) == 60


def test_results_of_two_studies_do_not_mix(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "out").mkdir()
    (study / "out" / "study.digest").write_text("another")
    assert _run(study) == 2
    assert "another study" in capsys.readouterr().err


def test_one_pretraining_can_be_made_alone_with_the_statistics_of_its_features(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(study, "--pretraining", "equalize-nobody-1") == 2
    assert "--pretraining: expected one of equalize-all-1" in capsys.readouterr().err
    assert _run(study, "--pretraining", "equalize-west-1") == 0
    assert not (study / "out" / "jobs").exists()
    found = sorted(path.name for path in (study / "out" / "pretrained").rglob("*"))
    assert found == [
        "config.json",
        "equalize-west-1",
        "equalize-west-1.safetensors",
        "features.safetensors",
        "model.safetensors",
    ]


def test_an_unknown_recipe_is_named(study: Path) -> None:
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "recipe": "best"}))
    with pytest.raises(SettingsError, match=r"recipe: expected one of plain, all; found 'best'"):
        read_study(study / "study.yaml")


def test_a_reference_that_is_named_as_a_stage_is_an_error(study: Path) -> None:
    stages = [*PLAN["stages"], {"kind": "finetune", "name": "resnet18", "rounds": 1}]
    (study / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "stages": stages}))
    with pytest.raises(
        SettingsError, match=r"reference\.network: expected another name than a stage's, found 'resnet18'"
    ):
        read_study(study / "study.yaml")


def test_both_starts_learn_from_the_same_draws_and_the_reference_from_the_first_ones(study: Path) -> None:
    shares = [job for job in jobs(*read_study(study / "study.yaml")) if not job.without]
    kinds = [(job.stage, job.recipe.init, job.seed) for job in shares]
    ways = [("full", "random"), ("full", "mae"), ("probe", "random"), ("probe", "mae")]
    assert kinds == [*((*way, 1) for way in ways), ("resnet18", "random", 1), *((*way, 2) for way in ways)]


def test_a_probe_of_random_weights_trains_its_head_alone(study: Path) -> None:
    config, plan = read_study(study / "study.yaml")
    bench = Bench(config, plan, {}, study / "out", Runtime(torch.device("cpu")))
    probe, full = (
        next(job for job in jobs(config, plan) if (job.stage, job.recipe.init, job.without) == (stage, "random", ""))
        for stage in ("probe", "full")
    )
    assert (bench.stage(plan, probe).trains, bench.stage(plan, probe).optimizer.lr) == ("head", 1e-3)
    assert (bench.stage(plan, full).trains, bench.stage(plan, full).layer_decay) == ("all", 1.0)


def test_more_draws_of_the_reference_than_of_patients_are_named(study: Path) -> None:
    share = {**STUDY["labels"][0], "reference_draws": 3}
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "labels": [share]}))
    with pytest.raises(SettingsError, match=r"reference_draws: expected at most draws, 2; found 3"):
        read_study(study / "study.yaml")


def test_every_cell_comes_equally_often_in_balanced_batches() -> None:
    cells = np.array([0] * 90 + [1] * 9 + [2])
    drawn = np.concatenate(list(balanced_rows(np.arange(100), cells, 30, 0, 100)))
    counts = np.bincount(cells[drawn], minlength=3)
    assert (np.abs(counts - 1000) < 120).all()  # four deviations of a binomial


def test_equalised_pictures_do_not_depend_on_contrast_and_brightness() -> None:
    levels = np.random.default_rng(0).integers(0, 120, (64, 64)).astype(np.uint8)
    brighter = (levels * 2 + 15).astype(np.uint8)
    assert np.abs(equalized(levels).astype(int) - equalized(brighter)).max() <= 3
    spec = DataSpec(findings=("Pneumonia",), image_size=64, intensity="equalize")
    assert (fit(levels, spec) == equalized(levels)).all()


def test_the_interval_of_one_draw_is_that_of_its_patients() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 80).astype(float)
    scores = targets + rng.normal(0, 1, 80)
    curve = Outcome(scores[None], targets, np.arange(80)).curves()
    assert (curve[0] == resampled_auroc(scores, targets, patient_weights(np.arange(80), 1000, 0))).all()
    low, high = interval(curve)
    assert (low, high) == pytest.approx(tuple(np.quantile(curve, [0.025, 0.975])))
    assert low < auroc(scores, targets) < high


def test_the_interval_of_equal_gains_in_all_draws_and_resamples_has_no_width() -> None:
    curves = np.random.default_rng(0).random((3, 1000))
    assert interval(curves + 0.1 - curves) == pytest.approx((0.1, 0.1))


def test_hospitals_whose_pictures_are_all_excluded_are_an_error(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (study / "data").glob("*/images/*.png"):
        Image.new("L", (16, 16)).save(file)
    assert _run(study) == 2
    assert "found none" in capsys.readouterr().err
