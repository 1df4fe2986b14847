"""A comparison of rules runs its federations once, goes on where it stopped, and its tables say what the results say."""

from __future__ import annotations

import dataclasses
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from client.archive.identity import SPLITS
from client.dataset import Cache
from cxrbase_model.engine import Runtime
from cxrbase_model.messages import Task
from cxrbase_model.metrics import auroc
from cxrbase_model.plan import FinetuneStage
from cxrbase_model.settings import SettingsError, read
from cxrbase_model.state import norm
from sim.cli import main
from sim.compare import Attack, CompareConfig, Job, Rule, jobs, mark, plan_of, read_compare
from sim.compare_bench import Bench, Result, update_attack
from sim.compare_findings import Curves, Findings, Value, cell, paired
from sim.compare_plot import loss_table, write_plots
from sim.compare_table import judged, rounds_to, tables

PLAN = {
    "schema": 1, "name": "tiny", "data": {"findings": ["Pneumonia"], "image_size": 32},
    "model": {"encoder": "vit_micro", "depth": 1},
    "stages": [{"kind": "finetune", "name": "detect", "init": "random", "rounds": 2, "batch_size": 4}],
}  # fmt: skip
RULES = [{"name": "mean"}, {"name": "median", "aggregation": {"rule": {"kind": "median"}}}]
STUDY: dict[str, Any] = {
    "hospitals": {"kind": "folders"}, "seeds": [1], "watched": 20, "largest_patient": 5,
    "parts": [
        {"name": "attacked", "title": "Attacked", "plan": "plan.yaml", "curve": False, "rules": RULES, "attackers": [1],
         "partitions": [{"kind": "even", "sites": 4}], "attacks": [{"kind": "nan"}, {"kind": "label-flip"}]},
        {"name": "cuts", "plan": "plan.yaml", "partitions": [{"kind": "natural", "cut": {"east": 2, "west": 2}}],
         "rules": [*RULES, {"name": "pooled", "pooled": True}, {"name": "norms", "aggregation": {"keep_local": ["*norm*"]}}]},
    ],
}  # fmt: skip
ATTACK = {"rules": RULES, "plan": "plan.yaml", "attacks": []}


def write_study(folder: Path) -> Path:
    """Two hospitals of forty-one identifiers, where the sick have a bright half and one identifier stands for eight people."""
    rng = np.random.default_rng(0)
    for hospital in ("east", "west"):
        images = folder / "data" / hospital / "images"
        images.mkdir(parents=True)
        lines = ["image,patient_id,findings"]
        for number in range(48):
            picture = rng.integers(0, 160, (160, 160), dtype=np.uint8)
            picture[:80] += np.uint8(number % 2 * 90)
            Image.fromarray(picture).save(images / f"{number}.png")
            finding = "Pneumonia" if number % 2 else "No Finding"
            lines.append(f"images/{number}.png,p{min(number, 40)},{finding}")
        (images.parent / "labels.csv").write_text("\n".join(lines))
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "federation": {"quorum": 3}}))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that was not run."""
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run, and is not changed by a test."""
    folder = write_study(tmp_path_factory.mktemp("study"))
    assert run(folder) == 0
    return folder


def run(study: Path, *more: str) -> int:
    arguments = ["compare", str(study / "study.yaml"), "--data", str(study / "data"), "--out", str(study / "out")]
    return main([*arguments, "--workers", "1", *more])


def bench_of(study: Path) -> Bench:
    config, plans = read_compare(study / "study.yaml")
    sites = sorted((study / "out" / "pictures" / "hospitals").glob("*/SITE.yaml"))
    return Bench(config, plans, sites, study / "data", study / "out", Runtime(torch.device("cpu"), "float32"))


def test_a_comparison_writes_its_tables_and_goes_on_where_it_stopped(done: Path, tmp_path: Path) -> None:
    study = tmp_path / "copy"
    shutil.copytree(done, study)
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "parts": STUDY["parts"][:1]}))
    text = (study / "out" / "compare.md").read_text()
    assert "| `median` | " in text
    assert "1 of 4 hospitals attack; seed 1." in text
    assert "**as they came**, 4 hospitals, seed 1:" in text
    files = sorted((study / "out" / "jobs").glob("*/*.npz"))
    assert len(files) == 2 + 4 + 4
    with np.load(files[0]) as found:
        before = found["scores"]
    kept = files[1].stat().st_mtime_ns
    files[0].unlink()
    # the results are of this folder of pictures, wherever it was copied to
    arguments = ["compare", str(study / "study.yaml"), "--data", str(done / "data"), "--out", str(study / "out")]
    assert main([*arguments, "--workers", "1"]) == 0
    with np.load(files[0]) as found:
        assert (found["scores"] == before).all(), "a federation ends in the same bits each time"
    assert files[1].stat().st_mtime_ns == kept
    for name in ("attacked.svg", "cuts.svg"):
        ElementTree.parse(study / "out" / name)


def test_each_job_is_a_real_run_whose_record_says_what_the_server_saw(done: Path) -> None:
    bench = bench_of(done)
    nan, flipped = (bench.do(each) for each in list(jobs(bench.config))[2:4])
    assert nan.rejected == {"NOT_FINITE": 2}
    assert flipped.rejected == {}
    assert nan.sent[-1] > nan.received[-1] > 20_000
    assert len(nan.curve) == 1, "the end alone is tested where no curve is drawn"
    assert nan.stopped == ""


def test_a_round_without_quorum_ends_a_federation_and_its_last_weights_are_tested(done: Path, tmp_path: Path) -> None:
    bench = bench_of(done)
    federation = dataclasses.replace(bench.plans["attacked"].federation, quorum=4)
    plans = {**bench.plans, "attacked": dataclasses.replace(bench.plans["attacked"], federation=federation)}
    bench = dataclasses.replace(bench, plans=plans, out=tmp_path)
    result = bench.do(list(jobs(bench.config))[2])
    assert "no quorum of 4" in result.stopped
    assert (result.scores == 0.5).all(), "no round of it was ever committed"
    assert bench.do(list(jobs(bench.config))[2]).stopped == result.stopped


def test_an_identifier_of_too_many_pictures_is_taken_apart_and_nobody_is_on_both_sides(done: Path) -> None:
    bench = bench_of(done)
    pool = bench.pool
    assert len(np.unique(pool.patients)) == len(pool.patients) == 96
    job = list(jobs(bench.config))[-1]
    tested = bench.tested(job)
    assert 20 <= len(tested) <= 28
    assert (bench.splits[tested] == SPLITS.index("test")).all()
    whole = dataclasses.replace(bench, config=dataclasses.replace(bench.config, largest_patient=None))
    assert len(np.unique(whole.pool.patients)) == 82
    for patient in np.unique(whole.pool.patients):
        assert len(np.unique(whole.splits[whole.pool.patients == patient])) == 1


def test_settings_are_chosen_on_patients_that_are_neither_trained_nor_tested_on(done: Path, tmp_path: Path) -> None:
    tested = bench_of(done)
    config = dataclasses.replace(tested.config, validation=0.2, judged="validation")
    tuned = dataclasses.replace(tested, config=config)
    job = next(iter(jobs(config)))
    judged, test = tuned.tested(job), tested.tested(job)
    trained = tuned.pool.pictures[tuned.splits == SPLITS.index("train")]
    sites = tuned._hospitals(job, plan_of(tuned.plans["attacked"], job), tmp_path)
    assert sum(len(Cache.open(site.cache_folder)) for site in sites) == len(trained) == 96 - len(test) - len(judged)
    assert len(judged) == 20
    assert not np.isin(tuned.pool.patients[judged], tuned.pool.patients[test]).any()
    again = dataclasses.replace(tested, config=dataclasses.replace(config, judged="test"))
    assert (again.tested(job) == test).all(), "test patients are the same however many settings are chosen on"


def test_a_comparison_that_judges_on_validation_patients_needs_some() -> None:
    parts = [{"name": "a", **ATTACK}]
    with pytest.raises(SettingsError, match="validation: expected a share above 0"):
        read(CompareConfig, {"parts": parts, "judged": "validation"})
    with pytest.raises(SettingsError, match=r"validation: expected at most 0.9 with held_out, found 1"):
        read(CompareConfig, {"parts": parts, "held_out": 0.6, "validation": 0.4})


def test_a_rule_changes_what_it_says_of_the_last_stage_and_leaves_the_rest(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    job = next(iter(jobs(config)))
    before = plan_of(plans["attacked"], job).stages[-1]
    changes = {"pooling": "grid", "standardise": True, "optimizer": {"lr": 0.25}}
    changed = dataclasses.replace(job, rule=read(Rule, {"name": "grid", "stage": changes}))
    after = plan_of(plans["attacked"], changed).stages[-1]
    assert isinstance(before, FinetuneStage)
    optimizer = dataclasses.replace(before.optimizer, lr=0.25)
    assert after == dataclasses.replace(before, pooling="grid", standardise=True, optimizer=optimizer)
    for wrong, told in (
        ({"poolin": "grid"}, r"stage\.poolin: unknown key"),
        ({"optimizer": 3}, r"stage\.optimizer: expected"),
    ):
        with pytest.raises(SettingsError, match=told):
            plan_of(plans["attacked"], dataclasses.replace(job, rule=read(Rule, {"name": "x", "stage": wrong})))


def test_scaffold_can_be_compared_with_weights_and_packing_of_its_own(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    job, plan = next(iter(jobs(config))), plans["attacked"]
    assert (plan.federation.weighting, plan.transport.update) == ("examples", "int8")
    scaffold: dict[str, Any] = {"name": "SCAFFOLD", "aggregation": {"scaffold": True}}
    with pytest.raises(SettingsError, match="weighting: expected uniform"):
        plan_of(plan, dataclasses.replace(job, rule=read(Rule, scaffold)))
    rule = read(Rule, scaffold | {"weighting": "uniform", "transport": {}})
    found = plan_of(plan, dataclasses.replace(job, rule=rule))
    assert (found.federation.weighting, found.transport.update) == ("uniform", "float32")
    assert plan_of(plan, job).transport == plan.transport


def test_results_of_other_settings_are_none_of_this_job(study: Path) -> None:
    config, plans = read_compare(study / "study.yaml")
    first, second, *_ = jobs(config)
    plan = plans["attacked"]
    marks = {
        mark(config, plan, first, Path("a")),
        mark(config, plan, first, Path("b")),
        mark(config, plan, second, Path("a")),
        mark(config, plan, dataclasses.replace(first, seed=2), Path("a")),
        mark(config, plan, dataclasses.replace(first, attack=Attack(kind="nan"), attackers=1), Path("a")),
        mark(dataclasses.replace(config, held_out=0.3), plan, first, Path("a")),
        mark(dataclasses.replace(config, validation=0.1, judged="validation"), plan, first, Path("a")),
    }
    assert len(marks) == 7
    more = dataclasses.replace(config, seeds=(1, 2), parts=config.parts[:1])
    assert mark(more, plan, first, Path("a")) == mark(config, plan, first, Path("a")), "a study may grow"


def test_seeds_are_outermost_and_honest_federations_come_first(study: Path) -> None:
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "seeds": [1, 2]}))
    found = list(jobs(read_compare(study / "study.yaml")[0]))
    assert [job.seed for job in found] == [1] * 10 + [2] * 10
    assert [job.attackers for job in found[:6]] == [0, 0, 1, 1, 1, 1]
    assert len({job.name for job in found}) == 20


def test_a_rule_that_the_quorum_is_too_small_for_is_named(study: Path) -> None:
    part = {**STUDY["parts"][0], "rules": [{"name": "krum", "aggregation": {"rule": {"kind": "krum"}}}]}
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "parts": [part]}))
    with pytest.raises(SettingsError, match=r"attacked/even-krum-0: federation.quorum: expected at least 5"):
        read_compare(study / "study.yaml")


def test_folders_are_asked_for_by_name(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(study / "study.yaml"), "--out", str(study / "out")]) == 2
    assert "--data: is required" in capsys.readouterr().err
    assert run(study, "--part", "none") == 2
    assert not (study / "out" / "jobs").exists()
    assert "expected one of attacked, cuts" in capsys.readouterr().err


def job_of(kind: str, factor: float = 1.0, seed: int = 1) -> Job:
    config = read_compare_of([{"kind": kind, "factor": factor}])
    part = config.parts[0]
    return Job(part, part.partitions[0], part.rules[0], part.attacks[0], 2, seed)


def read_compare_of(attacks: list[dict[str, Any]]) -> Any:
    return read(CompareConfig, {"parts": [{"name": "a", **ATTACK, "attacks": attacks}]})


@pytest.mark.parametrize(
    ("kind", "expected"), [("sign-flip", -3.0), ("scaled", 3.0), ("noise", None), ("colluding", None)]
)
def test_an_attack_does_to_an_update_what_it_says(kind: str, expected: float | None) -> None:
    task = Task("finetune", "run", 1, "detect", 1, "detect", "", "")
    update = {"w": torch.tensor([3.0, 4.0]), "b": torch.zeros(0)}
    attack, other = update_attack(job_of(kind, 3.0), "h007"), update_attack(job_of(kind, 3.0), "h008")
    assert attack is not None
    assert other is not None
    sent, theirs = attack(task, update)["w"], other(task, update)["w"]
    assert norm({"w": sent}) == pytest.approx(15.0)
    if expected is not None:
        assert torch.equal(sent, expected * update["w"])
    assert torch.equal(sent, theirs) == (kind != "noise"), "noise is each attacker's own"


def test_a_flipped_head_hides_behind_an_honest_encoder() -> None:
    attack = update_attack(job_of("head-flip", 2.5), "h008")
    assert attack is not None
    task = Task("finetune", "run", 1, "detect", 1, "detect", "", "")
    update = {"encoder.w": torch.tensor([0.0, 12.0]), "head.weight": torch.tensor([3.0, 4.0])}
    sent = attack(task, update)
    assert torch.equal(sent["encoder.w"], update["encoder.w"])
    assert norm(sent) == pytest.approx(2.5 * 13)
    assert sent["head.weight"] / norm({"h": sent["head.weight"]}) == pytest.approx(torch.tensor([-0.6, -0.8]))
    assert attack(task, {"encoder.w": torch.ones(2)})["encoder.w"].tolist() == [1, 1], "there is no head in pretraining"


def test_a_free_rider_sends_next_to_nothing_and_data_attacks_leave_the_update_alone() -> None:
    rider = update_attack(job_of("free-rider"), "h008")
    assert rider is not None
    sent = rider(Task("finetune", "run", 1, "detect", 1, "detect", "", ""), {"w": torch.tensor([3.0, 4.0])})
    assert norm(sent) == pytest.approx(0.005)
    assert update_attack(job_of("label-flip"), "h008") is None
    assert update_attack(job_of("inverted"), "h008") is None


def test_data_attacks_change_the_labels_or_the_pictures_of_the_attackers_alone(done: Path, tmp_path: Path) -> None:
    bench = bench_of(done)
    honest, *_ = jobs(bench.config)
    plan = plan_of(bench.plans["attacked"], honest)
    caches = {}
    for kind in ("", "label-flip", "inverted"):
        job = dataclasses.replace(honest, attack=Attack(kind=kind), attackers=1) if kind else honest
        sites = bench._hospitals(job, plan, tmp_path / f"caches{kind}")
        caches[kind] = [Cache.open(site.cache_folder) for site in sites]
    rows = np.arange(len(caches[""][3]))
    assert (caches["label-flip"][3].labels == 1 - caches[""][3].labels).all()
    assert (caches["inverted"][3].pixels(rows) == 255 - caches[""][3].pixels(rows)).all()
    assert (caches["inverted"][3].labels == caches[""][3].labels).all()
    for kind in ("label-flip", "inverted"):
        for number in range(3):
            rows = np.arange(len(caches[""][number]))
            assert (caches[kind][number].labels == caches[""][number].labels).all()
            assert (caches[kind][number].pixels(rows) == caches[""][number].pixels(rows)).all()


def made_up(bench: Bench, scores: dict[str, np.ndarray], curve: list[float]) -> Findings:
    """Findings of results that are written and not trained."""
    for job in jobs(bench.config):
        count = len(bench.tested(job))
        result = Result(
            np.resize(scores.get(job.rule.name, np.array([0.5])), count).astype(np.float32), np.array(curve),
            np.array([10_000_000, 20_000_000]), np.array([1_000_000, 2_000_000]), "", {},
        )  # fmt: skip
        file = bench.out / "jobs" / f"{job.name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        fields = {**vars(result), "rejected": "{}"}
        np.savez(file, mark=mark(bench.config, bench.plans[job.part.name], job, bench.data), **fields)
    return Findings(bench)


def test_the_tables_are_right_on_made_up_results(done: Path, tmp_path: Path) -> None:
    bench = dataclasses.replace(bench_of(done), out=tmp_path)
    rows = bench.tested(next(iter(jobs(bench.config))))
    perfect = bench.pool.labels[rows, 0]
    findings = made_up(bench, {"mean": perfect, "pooled": perfect}, [0.9, 0.97])
    text = tables(findings)
    assert "| `mean` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 0.0 (0.0 to 0.0) |" in text
    assert "| `median` | 0.500 (0.500 to 0.500) | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) |" in text
    assert "| `mean` | nan | 0.00 (0.00 to 0.00) | yes |" in text
    assert "| `median` | nan | 50.00 (50.00 to 50.00) | no |" in text
    assert "| `pooled` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 2 |  |" in text
    assert "| `mean` | 1.000 (1.000 to 1.000) | 0.0 (0.0 to 0.0) | 2 | 22 |" in text
    part = bench.config.parts[0]
    assert findings.seeds(cell(part, part.partitions[0], part.rules[0])) == [1]
    (tmp_path / "jobs" / "attacked" / "even-median-nan-by-1-1.npz").unlink()
    text = tables(Findings(bench))
    assert "| `median` | 0.500 (0.500 to 0.500) | not done | 50.0 (50.0 to 50.0) |" in text
    assert "| `median` | not done |  |  |" in text, "no verdict before all attacks were tried"


def test_no_curve_is_drawn_where_the_end_alone_was_tested(done: Path, tmp_path: Path) -> None:
    bench = dataclasses.replace(bench_of(done), out=tmp_path)
    cuts = next(part for part in bench.config.parts if not part.attacks)
    for curve in (True, False):
        config = dataclasses.replace(bench.config, parts=(dataclasses.replace(cuts, curve=curve),))
        findings = made_up(dataclasses.replace(bench, config=config), {}, [0.9, 0.97] if curve else [0.97])
        assert [file.name for file in write_plots(findings, tmp_path)] == ([f"{cuts.name}.svg"] if curve else [])


def test_rounds_are_counted_to_the_first_that_reaches_the_goal() -> None:
    assert rounds_to(np.array([0.5, 0.8, 0.7, 0.9]), 0.8) == 2
    assert rounds_to(np.array([0.5, 0.6]), 0.8) is None
    assert rounds_to(np.array([]), 0.8) is None


def test_a_loss_is_judged_by_its_whole_interval() -> None:
    assert judged(Value(0.1, -0.2, 0.4)) == "yes"
    assert judged(Value(0.3, 0.0, 0.6)) == "yes, but the interval reaches 0.60"
    assert judged(Value(0.7, 0.2, 1.0)) == "no, but the interval reaches down to 0.20"
    assert judged(Value(2.0, 1.0, 3.0)) == "no"


def test_the_interval_of_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 200).astype(float)
    scores = targets + rng.normal(0, 1, 200)
    curves = Curves(targets, np.zeros(200, np.int64), np.arange(200))
    same = paired([0.0], np.array([curves.resampled(scores) - curves.resampled(2 * scores)]))
    assert (same.low, same.high) == (0.0, 0.0), "both are the same order of the same patients"
    alone = paired([curves.value(scores)], np.array([curves.resampled(scores)]))
    assert alone.low < alone.value == auroc(scores, targets) < alone.high


def test_groups_of_one_class_do_not_count() -> None:
    targets = np.array([0.0, 1.0, 1.0, 1.0])
    curves = Curves(targets, np.array([0, 0, 1, 1]), np.arange(4))
    assert curves.value(np.array([0.1, 0.9, 0.2, 0.3])) == 1.0
    with pytest.raises(ValueError, match="both classes"):
        Curves(np.ones(3), np.zeros(3, np.int64), np.arange(3))


def test_the_picture_of_losses_says_each_of_them() -> None:
    found = {("mean", "nan"): Value(0.04, 0.0, 0.1), ("mean", "scaled-x100"): Value(41.26, 38.0, 44.0)}
    drawn = ElementTree.fromstring(f"<svg>{loss_table(found, ['mean'], ['nan', 'scaled-x100'], 'lost')}</svg>")
    words = [each.text for each in drawn.iter("text")]
    assert words == ["lost", "nan", "scaled ×100", "mean", "0.0", "41.3"]
    assert "mean, scaled-x100: 41.26 (38.00 to 44.00)" in [each.text for each in drawn.iter("title")]
