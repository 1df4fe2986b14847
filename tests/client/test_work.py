"""What a hospital computes for a task, against independent versions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.dataset import Cache
from client.site import Site
from client.work import _progress, describe, evaluate, train
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import decode, sent, unpack
from cxrbase_model.engine import Runtime
from cxrbase_model.features import build_objective
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.messages import Task
from cxrbase_model.metrics import auroc
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage
from cxrbase_model.predict import predict, pretrain_loss
from cxrbase_model.rows import labelled, labelled_share, training_rows
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import State, add, load_state, moving_names, norm, size, state_of, subtract
from cxrbase_model.transport import Transport

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def cache(site: Site) -> Cache:
    return Cache.open(site.cache_folder)


def test_the_update_of_pretraining_lowers_the_loss_of_the_global_weights(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State]
) -> None:
    stage, state = plan.stages[0], state_for("mae")
    assert isinstance(stage, PretrainStage)
    model, losses = build_autoencoder(plan), []
    for number in (1, 2, 3):
        reply = train(task_for("mae", number, state=state), site, cache, CPU)
        load_state(model, state)
        pictures = torch.from_numpy(cache.pixels(cache.rows("validation")))
        losses.append(pretrain_loss(model, [pictures], stage, derive_seed(plan.seed, "masks", site.site), CPU))
        assert reply.metrics["validation_loss"] == pytest.approx(losses[-1], rel=1e-5)
        assert (reply.steps, reply.examples) == (9, 72), "two epochs over 36 pictures in steps of 8"
        state = add(state, unpack(reply.update))
    assert losses[-1] < losses[0]


def test_the_same_task_on_the_same_cache_gives_the_same_update(
    site: Site, cache: Cache, task_for: Callable[..., Task]
) -> None:
    replies = [train(task_for("detect"), site, cache, CPU) for _ in range(2)]
    assert replies[0].update == replies[1].update
    assert norm(unpack(replies[0].update)) > 0
    assert train(task_for("detect", 2), site, cache, CPU).update != replies[0].update


def test_a_proximal_term_keeps_the_local_weights_closer_to_the_global_ones(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task]
) -> None:
    def length(pull: float) -> float:
        pulled = replace(plan, aggregation=replace(plan.aggregation, proximal=pull))
        return norm(unpack(train(task_for("mae", plan=pulled), site, cache, CPU).update))

    assert length(100.0) < 0.8 * length(0.0)


def test_coarse_weights_are_trained_from_as_they_arrive_and_the_update_is_packed_as_the_plan_says(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State]
) -> None:
    transport = Transport(broadcast="bf16", update="int8", compress="zstd")
    packed, state = sent(state_for("mae"), transport.down("pretrain"))
    task = replace(task_for("mae", state=state, plan=replace(plan, transport=transport)), state=packed)
    exact = unpack(train(task_for("mae", state=state), site, cache, CPU).update)
    reply = train(task, site, cache, CPU)
    update = decode(reply.update, transport.up, size(state))
    assert norm(subtract(update, exact)) < 0.02 * norm(exact)
    assert len(reply.update) < 0.3 * 4 * size(state)


def test_a_round_covers_its_own_part_of_the_schedule(plan: Plan, task_for: Callable[..., Task]) -> None:
    stage = plan.stages[0]
    assert isinstance(stage, PretrainStage)
    parts = [_progress(stage, task_for("mae", number), 36) for number in (1, 2, 3)]
    assert [part.first_step for part in parts] == [0, 9, 18]
    assert {part.total_steps for part in parts} == {27}


def test_finetuning_reads_labelled_pictures_of_a_share_of_the_patients_only(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task]
) -> None:
    reply = train(task_for("detect"), site, cache, CPU)
    rows = labelled_share(cache, cache.rows("train"), 0.5, derive_seed(plan.seed, "label-share", site.site))
    assert reply.examples == len(rows) < len(cache.rows("train"))


def test_balanced_findings_are_what_the_hospital_draws(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, pixels = plan.stages[1], Cache.pixels
    seen: list[NDArray[np.int64]] = []
    assert isinstance(stage, FinetuneStage)
    balanced = replace(plan, stages=(plan.stages[0], replace(stage, balance="findings", label_fraction=1.0)))
    rows = labelled(cache, cache.rows("train"))

    def look(self: Cache, chosen: NDArray[np.int64]) -> Any:
        seen.append(chosen)
        return pixels(self, chosen)

    monkeypatch.setattr(Cache, "pixels", look)
    reply = train(task_for("detect", plan=balanced), site, cache, CPU)
    seed = derive_seed(plan.seed, "train", 1, site.site)
    assert [each.tolist() for each in seen[-reply.steps :]] == [
        each.tolist() for each in training_rows(cache, rows, 8, seed, 1.0, "findings")
    ]


def test_a_share_of_labels_is_one_of_patients_and_grows_from_the_same_ones(cache: Cache) -> None:
    rows = cache.rows("train")
    whole = labelled(cache, rows)
    shares = [set(labelled_share(cache, rows, fraction, 5).tolist()) for fraction in (0.0001, 0.25, 0.5, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(shares))
    assert shares[-1] == set(whole.tolist())
    patients = [len({int(cache.patients[row]) for row in share}) for share in shares]
    assert patients == [1, 4, 8, 16], "sixteen of the eighteen patients have a label"
    for share in shares:
        mine = {int(cache.patients[row]) for row in share}
        assert share == {int(row) for row in whole if int(cache.patients[row]) in mine}


def test_an_evaluation_measures_the_weights_that_came_on_the_test_patients(
    site: Site, cache: Cache, plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State]
) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {
        name: value + 0.2 * torch.randn(value.shape, generator=draw) for name, value in state_for("detect").items()
    }
    reply = evaluate(task_for("test", state=state), replace(site, minimum_cell=1), cache, CPU)
    stage = plan.stages[1]
    assert isinstance(stage, FinetuneStage)
    assert reply.evaluation is not None
    model = build_classifier(plan, stage)
    load_state(model, state)
    rows = labelled(cache, cache.rows("test"))
    scores, labels = predict(model, [torch.from_numpy(cache.pixels(rows))], CPU).numpy(), cache.labels[rows]
    known = np.isfinite(labels[:, 1])
    expected = auroc(scores[known, 1], labels[known, 1])
    assert reply.evaluation["findings"]["Nodule"]["auroc"]["value"] == pytest.approx(expected, abs=1e-4)


def test_a_description_is_of_the_cache_and_in_buckets(site: Site, cache: Cache, task_for: Callable[..., Task]) -> None:
    description = describe(task_for("describe"), site, cache).description
    assert description is not None
    assert description["pictures"] == {"train": 36, "validation": 10, "test": 14}
    assert description["patients"] == 30
    assert description["exclusions"] == {"LATERAL": "<5", "NOT_CHEST": 7}
    assert description["kinds"] == ["pretrain", "finetune", "evaluate"]


def test_a_small_split_cannot_be_had_from_the_others_and_the_totals(
    site: Site, cache: Cache, task_for: Callable[..., Task]
) -> None:
    description = describe(task_for("describe"), replace(site, minimum_cell=10), cache).description
    assert description is not None
    told = description["pictures"]
    assert told["train"] == 36
    assert not isinstance(told["validation"], int)
    assert not isinstance(told["test"], int), "60 pictures are told of in the findings, so 16 would give 8 away"


def test_a_round_that_was_interrupted_goes_on_and_leaves_no_checkpoint(
    site: Site, cache: Cache, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(task_for("mae"), site, cache, CPU).update
    monkeypatch.setattr(LocalCheckpoint, "is_due", lambda self: True)
    pixels, left = Cache.pixels, itertools.count(1)

    def failing(self: Cache, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if next(left) == 6:
            raise OSError("the disk went away")
        return pixels(self, rows)

    monkeypatch.setattr(Cache, "pixels", failing)
    with pytest.raises(OSError, match="went away"):
        train(task_for("mae"), site, cache, CPU)
    kept = site.private / "optimizer" / "interrupted.safetensors"
    assert kept.exists()
    assert train(task_for("mae"), site, cache, CPU).update == expected
    assert not kept.exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mae", {"objective": "features", "masks": 2}),
        ("detect", {"trains": "lora"}),
        ("detect", {"balance": "findings"}),
        ("detect", {"trains": "head", "pooling": "attentive", "loss": {"kind": "asymmetric"}}),
    ],
    ids=["features", "lora", "balanced", "attentive probe"],
)
def test_a_stages_knobs_reach_the_hospital(
    site: Site, cache: Cache, plan: Plan, name: str, changes: dict[str, Any], task_for: Callable[..., Task]
) -> None:
    mapping = to_mapping(plan)
    stage = next(each for each in mapping["stages"] if each["name"] == name)
    stage |= changes
    changed = read(Plan, mapping)
    found = changed.stage(name)
    assert not isinstance(found, EvaluateStage)
    model = build_classifier(changed, found) if isinstance(found, FinetuneStage) else build_objective(changed, found)
    update = unpack(train(task_for(name, plan=changed, state=state_of(model)), site, cache, CPU).update)
    moving = {tensor for tensor, change in update.items() if bool(change.any())}
    assert moving
    assert moving <= moving_names(model)
