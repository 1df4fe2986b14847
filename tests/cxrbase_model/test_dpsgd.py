"""Training with noise: it is there, it is enough, nothing else tells, and the training still learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.dpsgd import PrivateBatches, Protection
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.features import build_objective
from cxrbase_model.normals import NoiseSource
from cxrbase_model.parallel import Rows
from cxrbase_model.plan import Augmentation, FinetuneStage, Optimizer, Plan, PretrainStage, Privacy
from cxrbase_model.predict import predict
from cxrbase_model.proximal import proximal
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, digest, norm, state_of, subtract

CPU = Runtime(torch.device("cpu"))
TOTAL = torch.tensor(1.0)
QUIET = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0)


def pictures(count: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 32), dtype=torch.uint8, generator=draw)


def labelled(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    targets = (torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    targets[:, 2] = math.nan
    return pictures(count, seed), targets


def finetuning(plan: Plan) -> FinetuneStage:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    return replace(stage, optimizer=Optimizer(lr=0.1, beta2=0.999, warmup=0.1), positive_weight=1.0)


def finetuned(
    plan: Plan, source: NoiseSource, batches: list[tuple[Tensor, Tensor]], *, seed: int = 1, runtime: Runtime = CPU,
    privacy: Privacy | None = None,
) -> tuple[State, LocalResult]:  # fmt: skip
    stage = finetuning(plan)
    model = build_classifier(plan, stage)
    result = finetune(
        model, batches, stage, torch.ones(3), Progress(0, len(batches)), seed, runtime,
        protection=Protection(privacy or Privacy(), source),
    )  # fmt: skip
    return state_of(model), result


class Layer(nn.Module):
    """One matrix whose gradient is known: the sum of the inputs."""

    def __init__(self, width: int = 200) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)

    def costs(self, rows: Rows) -> Tensor:
        found: Tensor = self.layer(rows["images"])
        return found.sum(dim=1)


def private(model: Layer, privacy: Privacy, expected: int = 4, source: NoiseSource | None = None) -> PrivateBatches:
    return PrivateBatches(model, model.costs, CPU, Protection(privacy, source or NoiseSource()), expected)


def noised(privacy: Privacy, images: Tensor) -> Tensor:
    model = Layer()
    private(model, privacy).backward({"images": images}, TOTAL)
    assert model.layer.weight.grad is not None
    return model.layer.weight.grad.flatten()


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
@pytest.mark.parametrize(("noise", "clip"), [(1.0, 1.0), (0.5, 3.0), (7.0, 1e-3)])
def test_a_gradient_of_zero_leaves_as_noise_of_the_right_deviation(clipping: str, noise: float, clip: float) -> None:
    for images in (torch.zeros(3, 200), torch.zeros(0, 200)):  # a step with pictures that say nothing, and an empty one
        found = noised(Privacy(noise_multiplier=noise, clip=clip, clipping=clipping), images)
        deviation = noise * clip / 4
        assert float(found.std()) == pytest.approx(deviation, rel=0.02)  # 5.7 standard errors of 40,000 numbers
        assert abs(float(found.mean())) < 0.03 * deviation
        assert kstest((found / deviation).numpy(), "norm").statistic < 0.02  # chance below 1e-10


def test_the_noise_goes_on_once_and_on_the_sum_whatever_the_parts_are() -> None:
    images = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    sums = []
    for size in (None, 1, 2, 9):
        model = Layer()
        parts = private(model, Privacy(), source=NoiseSource(5))
        parts.size = size
        parts.backward({"images": images}, TOTAL)
        assert model.layer.weight.grad is not None
        sums.append(model.layer.weight.grad)
    for each in sums[1:]:
        torch.testing.assert_close(each, sums[0], atol=1e-5, rtol=1e-5)


def test_a_parameter_that_no_picture_has_reached_has_noise_too(small_plan: Plan) -> None:
    stage = finetuning(small_plan)
    model = build_classifier(small_plan, stage)  # its head is zero: no gradient goes further than that
    parts = PrivateBatches(model, lambda rows: model(rows["images"]), CPU, Protection(Privacy(), NoiseSource()), 1)
    parts.backward({"images": torch.zeros(2, 32, 32)}, TOTAL)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.std()) == pytest.approx(1.0, abs=6 / math.sqrt(2 * parameter.numel()) + 0.05)


def test_no_memory_for_a_part_changes_nothing_but_the_parts() -> None:
    images = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    found = []
    for most in (8, 3):
        model = Layer()

        def scarce(rows: Rows, model: Layer = model, most: int = most) -> Tensor:
            losses = model.costs(rows)
            if len(losses) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return losses

        parts = PrivateBatches(model, scarce, CPU, Protection(Privacy(), NoiseSource(5)), 4)
        parts.backward({"images": images}, TOTAL)
        found.append(model.layer.weight.grad)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_noise_lies_on_a_grid_that_the_values_have_no_part_in() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 3, 1000)
    for deviation in (0.3, 1.0, 700.0):
        step = 2.0 ** (math.floor(math.log2(deviation)) - 20)
        found = values.double()
        NoiseSource().add_to(found, deviation)
        assert torch.equal(found / step, (found / step).round())
        assert not torch.equal(found, values.double())
    with pytest.raises(ValueError, match="deviation"):
        NoiseSource().add_to(values, 0.0)


def test_two_trainings_with_secure_noise_differ_and_a_seeded_one_repeats(small_plan: Plan) -> None:
    batches = [labelled(4, seed) for seed in range(3)]
    assert digest(finetuned(small_plan, NoiseSource(), batches)[0]) != digest(
        finetuned(small_plan, NoiseSource(), batches)[0]
    )
    first, again, other = (finetuned(small_plan, NoiseSource(seed), batches)[0] for seed in (3, 3, 4))
    assert digest(first) == digest(again) != digest(other)


def test_nothing_random_follows_from_the_plans_seed_which_the_server_knows(small_plan: Plan) -> None:
    batches = [labelled(4, seed) for seed in range(3)]
    first, second = (finetuned(small_plan, NoiseSource(3), batches, seed=seed)[0] for seed in (1, 2))
    assert digest(first) == digest(second)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("objective", ["mae", "features"])
def test_pretraining_survives_steps_without_pictures(small_plan: Plan, objective: str, precision: str) -> None:
    stage = small_plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    stage = replace(stage, objective=objective, masks=2)
    model = build_objective(small_plan, stage)
    before = state_of(model)
    result = pretrain(
        model, [pictures(3), pictures(0), pictures(1)], stage, Progress(0, 3), 1, replace(CPU, precision=precision),
        protection=Protection(Privacy(), NoiseSource()),
    )  # fmt: skip
    assert (result.steps, result.examples) == (3, 3 * stage.batch_size), "what is expected, not what was there"
    assert math.isnan(result.loss)
    assert norm(subtract(state_of(model), before)) > 0


def test_a_step_without_pictures_moves_every_weight(small_plan: Plan) -> None:
    after, result = finetuned(small_plan, NoiseSource(), [labelled(0)])
    before = state_of(build_classifier(small_plan, finetuning(small_plan)))
    assert result.steps == 1
    assert all(bool((after[name] != before[name]).any()) for name in after)


def test_what_is_drawn_for_a_picture_does_not_depend_on_the_others() -> None:
    generator = torch.Generator()
    draw = lambda batch: ({"images": batch, "crop": torch.rand(len(batch), 5, generator=generator)}, TOTAL)  # noqa: E731
    found = []
    for count in (1, 4):
        protection = Protection(Privacy(), NoiseSource(3))
        rows, _ = protection.apart(draw, {"crop": generator})(pictures(count))
        assert rows["crop"].shape == (count, 5)
        assert torch.equal(rows["images"], pictures(count))
        found.append(rows["crop"])
    assert torch.equal(found[0][0], found[1][0])
    assert len({tuple(row.tolist()) for row in found[1]}) == 4


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_it_learns_where_there_is_enough_to_drown_the_noise(small_plan: Plan, clipping: str) -> None:
    stage = replace(finetuning(small_plan), augmentation=QUIET, drop_path=0.0, trains="last", batch_size=64)
    targets = torch.zeros(64, 3)
    targets[::2, 1] = 1
    images = torch.where(targets[:, 1, None, None] > 0, 200, 60).expand(64, 32, 32).to(torch.uint8)
    model = build_classifier(small_plan, stage)
    protection = Protection(Privacy(noise_multiplier=0.3, clipping=clipping), NoiseSource(1))
    finetune(model, [(images, targets)] * 40, stage, torch.ones(3), Progress(0, 40), 1, CPU, protection=protection)
    scores = predict(model, [images], CPU)[:, 1]
    assert float(scores[::2].min()) > float(scores[1::2].max())


def test_the_pull_to_the_global_weights_comes_after_the_noise(small_plan: Plan) -> None:
    def length(strength: float) -> float:
        stage = finetuning(small_plan)
        model = build_classifier(small_plan, stage)
        before = state_of(model)
        with proximal(model, strength):
            finetune(
                model, [labelled(4)] * 4, stage, torch.ones(3), Progress(0, 4), 1, CPU,
                protection=Protection(Privacy(), NoiseSource(2)),
            )  # fmt: skip
        return norm(subtract(state_of(model), before))

    assert length(100.0) < 0.8 * length(0.0)


def test_a_model_that_is_not_finite_neither_stops_the_training_nor_tells_of_a_picture(small_plan: Plan) -> None:
    stage = finetuning(small_plan)
    model = build_classifier(small_plan, stage)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield labelled(4)
        model.head.bias.data[0] = math.nan  # every picture's loss is now NaN
        yield labelled(4)

    protection = Protection(Privacy(), NoiseSource())
    result = finetune(model, stream(), stage, torch.ones(3), Progress(0, 2), 1, CPU, protection=protection)
    assert result.steps == 2
    assert bool(torch.isfinite(model.head.weight).all())


def test_no_checkpoint_of_a_private_training_is_written(
    small_plan: Plan, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalCheckpoint, "is_due", lambda self: True)
    path = tmp_path_factory.mktemp("private") / "interrupted.safetensors"
    stage = finetuning(small_plan)
    model = build_classifier(small_plan, stage)

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield labelled(4)
        assert not path.exists()
        yield labelled(4)

    protection = Protection(Privacy(), NoiseSource())
    finetune(
        model, stream(), stage, torch.ones(3), Progress(0, 2), 1, CPU, checkpoint=LocalCheckpoint(path),
        protection=protection,
    )  # fmt: skip
    assert not path.exists()


@pytest.mark.parametrize("name", ["compile", "recompute"])
def test_the_engine_refuses_what_hooks_do_not_see(small_plan: Plan, name: str) -> None:
    hidden: dict[str, Any] = {name: True}
    with pytest.raises(SettingsError, match=f"compute.{name}"):
        finetuned(small_plan, NoiseSource(), [labelled(2)], runtime=replace(CPU, **hidden))


def test_adding_a_patient_changes_the_sum_of_a_step_by_the_clip_at_most(small_plan: Plan) -> None:
    """The whole way from rows to the summed gradient of a step in which all patients are, with the same noise."""
    stage = replace(finetuning(small_plan), augmentation=QUIET, drop_path=0.0)
    privacy = Privacy(clip=0.01)
    sums = []
    for count in (6, 7):
        model: Classifier = build_classifier(small_plan, stage)
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
        images, targets = labelled(7)
        rows = {"images": images[:count].float() / 255, "targets": targets[:count]}

        def costs(part: Rows, model: Classifier = model) -> Tensor:
            logits: Tensor = model(part["images"])
            return (logits - part["targets"].nan_to_num()).square()

        parts = PrivateBatches(model, costs, CPU, Protection(privacy, NoiseSource(3)), 1)
        parts.backward(rows, TOTAL)
        sums.append(torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]))
    moved = float((sums[1] - sums[0]).norm())
    assert 0.9 * privacy.clip < moved < 1.01 * privacy.clip, "1 % for float32 numbers with noise on them"


def test_seeds_of_a_source_are_new_each_time() -> None:
    source = NoiseSource()
    seeds = [source.seed() for _ in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.mean([seed / 2**63 for seed in seeds]) == pytest.approx(0.5, abs=0.2)
