"""The training loop: it learns, repeats, stops before a broken loss reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cxrbase_model.augment import MEAN
from cxrbase_model.classifier import build_classifier
from cxrbase_model.engine import Progress, Runtime, TrainingDiverged, finetune, pretrain
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import Augmentation, FinetuneStage, Optimizer, Plan, PretrainStage
from cxrbase_model.predict import predict, pretrain_loss, reconstruct
from cxrbase_model.state import State, digest, state_of

CPU = Runtime(torch.device("cpu"))


def pretraining(plan: Plan) -> PretrainStage:
    stage = plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    return replace(stage, optimizer=Optimizer(lr=0.1, warmup=0.1))


def finetuning(plan: Plan) -> FinetuneStage:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    quiet = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0)
    return replace(stage, optimizer=Optimizer(lr=0.1, beta2=0.999, warmup=0.1), augmentation=quiet, drop_path=0.2)


def pictures(count: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(count, 1, 4, 4, generator=draw)
    return (torch.nn.functional.interpolate(smooth, (32, 32), mode="bilinear")[:, 0] * 255).to(torch.uint8)


def bright_or_dark(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.zeros(count, 3)
    targets[::2, 1] = 1
    targets[:, 2] = math.nan
    images = torch.where(targets[:, 1, None, None] > 0, 200, 60).expand(count, 32, 32).to(torch.uint8)
    return images, targets


def pretrained(plan: Plan, steps: int = 40, runtime: Runtime = CPU) -> tuple[float, State]:
    model = build_autoencoder(plan)
    result = pretrain(model, [pictures()] * steps, pretraining(plan), Progress(0, steps), 1, runtime)
    assert (result.steps, result.examples) == (steps, 8 * steps)
    return result.loss, state_of(model)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_pretraining_lowers_the_loss_and_repeats_bit_for_bit(small_plan: Plan, precision: str) -> None:
    runtime = replace(CPU, precision=precision)
    model = build_autoencoder(small_plan)
    before = pretrain_loss(model, [pictures()], pretraining(small_plan), 0, runtime)
    _, state = pretrained(small_plan, 60, runtime)
    _, again = pretrained(small_plan, 60, runtime)
    assert digest(state) == digest(again)
    model.load_state_dict(state, strict=False)
    assert pretrain_loss(model, [pictures()], pretraining(small_plan), 0, runtime) < 0.8 * before


def test_the_global_random_state_of_torch_is_left_alone(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pretrain(model, [pictures()] * 2, pretraining(small_plan), Progress(0, 2), 1, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_finetuning_learns_a_label_that_is_there_and_leaves_unknown_ones(small_plan: Plan) -> None:
    stage = finetuning(small_plan)
    model = build_classifier(small_plan, stage)
    images, targets = bright_or_dark()
    finetune(model, [(images, targets)] * 40, stage, torch.ones(3), Progress(0, 40), 1, CPU)
    scores = predict(model, [images[:3], images[3:]], CPU)
    assert scores.shape == (8, 3)
    assert bool((scores[::2, 1] > 0.8).all())
    assert bool((scores[1::2, 1] < 0.2).all())
    assert torch.allclose(scores[:, 2], torch.tensor(0.5), atol=0.05)


@pytest.mark.parametrize("side", [24, 40])
def test_pictures_of_another_size_are_an_error_that_names_it(small_plan: Plan, side: int) -> None:
    images, stage = torch.zeros(2, side, side, dtype=torch.uint8), finetuning(small_plan)
    model = build_classifier(small_plan, stage)
    line = rf"pictures: expected 32 x 32 pixels, 16 patches, found {(side // 8) ** 2} patches"
    with pytest.raises(ValueError, match=line):
        pretrain(build_autoencoder(small_plan), [images], pretraining(small_plan), Progress(0, 1), 1, CPU)
    with pytest.raises(ValueError, match=line):
        finetune(model, [(images, torch.ones(2, 3))], stage, torch.ones(3), Progress(0, 1), 1, CPU)


def test_pictures_that_are_not_uint8_are_an_error(small_plan: Plan) -> None:
    with pytest.raises(ValueError, match=r"pictures: expected uint8 from 0 to 255, found torch\.float32"):
        pretrain(
            build_autoencoder(small_plan), [torch.rand(2, 32, 32)], pretraining(small_plan), Progress(0, 1), 1, CPU
        )


@pytest.mark.parametrize("sound_steps", [0, 3, 30])
def test_a_loss_that_is_not_finite_stops_the_training_and_never_reaches_the_weights(
    small_plan: Plan, sound_steps: int
) -> None:
    stage = finetuning(small_plan)
    images, targets = bright_or_dark()
    model, twin = build_classifier(small_plan, stage), build_classifier(small_plan, stage)

    def stream() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(sound_steps):
            yield images, targets
        model.head.bias.data[0] = math.nan
        yield images, targets
        yield images, targets

    weights = torch.ones(3)
    if sound_steps:
        finetune(twin, [(images, targets)] * sound_steps, stage, weights, Progress(0, 99), 1, CPU)
    with pytest.raises(TrainingDiverged):
        finetune(model, stream(), stage, weights, Progress(0, 99), 1, CPU)
    model.head.bias.data[0] = twin.head.bias.data[0]
    assert digest(state_of(model)) == digest(state_of(twin))


def test_the_schedule_goes_on_where_the_round_before_ended(small_plan: Plan) -> None:
    stage = replace(pretraining(small_plan), optimizer=Optimizer(lr=0.1, warmup=0.5))
    early, late = build_autoencoder(small_plan), build_autoencoder(small_plan)
    start = state_of(early)
    pretrain(early, [pictures()], stage, Progress(0, 20), 1, CPU)
    pretrain(late, [pictures()], stage, Progress(9, 20), 1, CPU)
    moved = [
        float((state_of(model)["encoder.embed.weight"] - start["encoder.embed.weight"]).abs().max())
        for model in (early, late)
    ]
    assert moved[1] == pytest.approx(10 * moved[0], rel=0.05)


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_kept_moments_make_two_rounds_equal_one_long_one(small_plan: Plan, state: str) -> None:
    stage = finetuning(small_plan)
    stage = replace(stage, optimizer=replace(stage.optimizer, state=state), drop_path=0.0)
    whole, parted = build_classifier(small_plan, stage), build_classifier(small_plan, stage)
    batches, weights = [bright_or_dark()] * 4, torch.ones(3)
    finetune(whole, batches * 2, stage, weights, Progress(0, 8), 1, CPU)
    first = finetune(parted, batches, stage, weights, Progress(0, 8), 1, CPU)
    finetune(parted, batches, stage, weights, Progress(4, 8), 1, CPU, first.moments)
    assert (digest(state_of(whole)) == digest(state_of(parted))) == (state == "keep")


def test_moments_of_another_model_are_an_error(small_plan: Plan) -> None:
    stage = finetuning(small_plan)
    result = finetune(
        build_classifier(small_plan, stage), [bright_or_dark()], stage, torch.ones(3), Progress(0, 1), 1, CPU
    )
    with pytest.raises(ValueError, match="moments: expected those of this model's parameters"):
        pretrain(
            build_autoencoder(small_plan), [pictures()], pretraining(small_plan), Progress(0, 1), 1, CPU, result.moments
        )


def test_no_batches_is_an_error(small_plan: Plan) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        pretrain(build_autoencoder(small_plan), [], pretraining(small_plan), Progress(0, 1), 1, CPU)


def test_a_reconstruction_keeps_what_was_seen(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    stage = replace(pretraining(small_plan), mask_ratio=0.75)
    masked, complete = reconstruct(model, pictures(2), stage, seed=0)
    assert masked.dtype == complete.dtype == torch.uint8
    seen = (masked == pictures(2)).reshape(2, 4, 8, 4, 8).all(dim=4).all(dim=2)
    assert seen.sum().item() == 2 * 4
    assert bool((complete == pictures(2)).reshape(2, 4, 8, 4, 8).all(dim=4).all(dim=2)[seen].all())


@pytest.mark.parametrize("normalized", [True, False])
def test_a_reconstruction_is_in_the_units_of_the_stages_targets(small_plan: Plan, normalized: bool) -> None:
    model = build_autoencoder(small_plan)
    torch.nn.init.zeros_(model.predict.weight)  # predicts 0: the patch's own mean, or the mean of all radiographs
    stage = replace(pretraining(small_plan), mask_ratio=0.75, normalize_targets=normalized)
    images = pictures(2)
    masked, complete = reconstruct(model, images, stage, seed=0)
    tiles = [
        each.reshape(2, 4, 8, 4, 8).permute(0, 1, 3, 2, 4).reshape(2, 16, 64).float()
        for each in (images, masked, complete)
    ]
    hidden = ~(tiles[0] == tiles[1]).all(dim=2)
    expected = tiles[0].mean(dim=2) if normalized else torch.full((2, 16), MEAN * 255)
    torch.testing.assert_close(tiles[2].mean(dim=2)[hidden], expected[hidden], atol=1.0, rtol=0)
