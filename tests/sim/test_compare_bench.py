"""The jobs of a comparison: whose pictures they train and test on, and what attackers do in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from client.archive.identity import SPLITS
from client.dataset import Cache
from cxrbase_model.messages import Task
from cxrbase_model.settings import read
from cxrbase_model.state import norm
from sim.compare import Attack, CompareConfig, Job, jobs, plan_of
from sim.compare_bench import update_attack
from tests.sim.compared import RULES, bench_of


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


def job_of(kind: str, factor: float = 1.0, seed: int = 1) -> Job:
    part = read(
        CompareConfig,
        {"parts": [{"name": "a", "rules": RULES, "plan": "plan.yaml", "attacks": [{"kind": kind, "factor": factor}]}]},
    ).parts[0]
    return Job(part, part.partitions[0], part.rules[0], part.attacks[0], 2, seed)


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
