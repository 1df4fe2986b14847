"""A batch in parts gives the whole batch's step, and running out of memory makes the parts smaller."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Optimizer, Plan, PretrainStage
from cxrbase_model.state import State, state_of

CPU = Runtime(torch.device("cpu"))
OPTIMIZER = Optimizer(lr=0.1, beta2=0.999, warmup=0.1)


def pictures(steps: int = 6) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (8, 32, 32), dtype=torch.uint8, generator=draw) for _ in range(steps)]


def labelled(steps: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    targets = [(torch.rand(8, 3, generator=draw) < 0.5).float() for _ in range(steps)]
    for target in targets:
        target[torch.rand(8, 3, generator=draw) < 0.4] = math.nan  # parts differ in how many labels are known
    return list(zip(pictures(steps), targets, strict=True))


def classifier(plan: Plan) -> tuple[Classifier, FinetuneStage]:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    stage = replace(stage, optimizer=OPTIMIZER, drop_path=0.5)
    return build_classifier(plan, stage), stage


def finetuned(
    plan: Plan, runtime: Runtime, prepare: Callable[[Classifier], Any] = lambda model: None
) -> tuple[State, LocalResult]:
    model, stage = classifier(plan)
    prepare(model)
    result = finetune(model, labelled(), stage, torch.full((3,), 2.0), Progress(0, 6), 1, runtime)
    return state_of(model), result


def pretrained(plan: Plan, runtime: Runtime) -> tuple[State, LocalResult]:
    model, stage = build_autoencoder(plan), plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    stage = replace(stage, optimizer=OPTIMIZER, masks=2)
    return state_of(model), pretrain(model, pictures(), stage, Progress(0, 6), 1, runtime)


def assert_close(first: tuple[State, LocalResult], second: tuple[State, LocalResult]) -> None:
    assert second[1].loss == pytest.approx(first[1].loss, rel=1e-5)
    for name, tensor in first[0].items():
        torch.testing.assert_close(second[0][name], tensor, atol=2e-4, rtol=1e-3)


class Scarce:
    """Memory for so many pictures and no more."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.seen = most, error, list[int]()

    def __call__(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(len(arguments[0]))
        if len(arguments[0]) > self.most:
            raise self.error


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("train", [finetuned, pretrained])
def test_parts_of_a_batch_give_the_same_training(
    small_plan: Plan, train: Callable[[Plan, Runtime], tuple[State, LocalResult]], size: int
) -> None:
    assert_close(train(small_plan, CPU), train(small_plan, replace(CPU, micro_batch=size)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_halves_the_parts_and_changes_nothing_else(
    small_plan: Plan, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    scarce = Scarce(3, error)
    with caplog.at_level(logging.WARNING, "cxrbase.model"):
        scant = finetuned(small_plan, CPU, lambda model: model.register_forward_pre_hook(scarce))
    assert_close(finetuned(small_plan, CPU), scant)
    assert scarce.seen == [8, 4, *[2] * 24], "the size is found once"
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 8 pictures at a time, going on with 4",
        "out of memory with 4 pictures at a time, going on with 2",
    ]


def test_a_picture_that_does_not_fit_alone_is_an_error(small_plan: Plan) -> None:
    scarce = Scarce(0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        finetuned(small_plan, CPU, lambda model: model.register_forward_pre_hook(scarce))
    assert scarce.seen == [8, 4, 2, 1]


def test_another_error_is_not_taken_for_a_lack_of_memory(small_plan: Plan) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        finetuned(
            small_plan, CPU, lambda model: model.register_forward_pre_hook(Scarce(0, RuntimeError("something else")))
        )
