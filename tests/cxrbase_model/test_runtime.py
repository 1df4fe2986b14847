"""How it is computed does not change what is computed; and nothing waits for the device without need."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from torch.utils._python_dispatch import TorchDispatchMode

from cxrbase_model.classifier import build_classifier
from cxrbase_model.engine import CHECK_EVERY, Progress, Runtime, finetune, pretrain
from cxrbase_model.features import build_objective
from cxrbase_model.plan import FinetuneStage, Optimizer, Plan, PretrainStage
from cxrbase_model.state import State, digest, state_of

CPU = Runtime(torch.device("cpu"))


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (8, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pretrained(plan: Plan, runtime: Runtime, steps: int = 4, **changes: Any) -> State:
    stage = plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    stage = replace(stage, optimizer=Optimizer(lr=0.1, clip_grad=1.0), **changes)
    model = build_objective(plan, stage)
    pretrain(model, [pictures()] * steps, stage, Progress(0, steps), 1, runtime)
    return state_of(model)


def finetuned(plan: Plan, runtime: Runtime, steps: int = 4) -> State:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    stage = replace(stage, optimizer=Optimizer(lr=0.1, clip_grad=1.0), drop_path=0.3)
    model, targets = build_classifier(plan, stage), torch.ones(8, 3)
    finetune(model, [(pictures(), targets)] * steps, stage, torch.ones(3), Progress(0, steps), 1, runtime)
    return state_of(model)


@pytest.mark.parametrize("train", [pretrained, finetuned])
def test_computing_activations_anew_gives_the_same_bits(
    small_plan: Plan, train: Callable[[Plan, Runtime], State]
) -> None:
    assert digest(train(small_plan, replace(CPU, recompute=True))) == digest(train(small_plan, CPU))


@pytest.mark.parametrize("train", [pretrained, finetuned, functools.partial(pretrained, objective="features")])
def test_a_model_is_compiled_whole_and_trains_as_before(
    small_plan: Plan, train: Callable[[Plan, Runtime], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(small_plan, CPU)
    traced = functools.partial(
        torch.compile, backend="eager", fullgraph=True
    )  # traces as any backend does, makes no code
    monkeypatch.setattr(torch, "compile", traced)
    for name, tensor in train(small_plan, replace(CPU, compile=True)).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_deterministic_algorithms_are_used_during_training_alone(small_plan: Plan) -> None:
    seen = []

    def stream() -> Any:
        for _ in range(2):
            seen.append(torch.are_deterministic_algorithms_enabled())
            yield pictures()

    stage = small_plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    model = build_objective(small_plan, stage)
    pretrain(model, stream(), stage, Progress(0, 2), 1, replace(CPU, deterministic=True))
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_what_cublas_wants_for_determinism_is_set_unless_it_is_there(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with Runtime(torch.device("cuda"), deterministic=True).determinism():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (own or ":4096:8")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"precision": "fp16"}, "precision: expected float32 or bf16, found 'fp16'"),
        ({"micro_batch": 0}, "micro_batch: expected at least 1 picture or None, found 0"),
    ],
)
def test_a_runtime_that_there_is_not_is_named(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        replace(CPU, **wrong)


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Counts how often a number is taken out of a tensor, for which the processor waits on a GPU: item(), bool(), float()."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [pretrained, finetuned, functools.partial(pretrained, objective="features")])
def test_the_loop_looks_at_the_device_every_so_many_steps_and_no_more(
    small_plan: Plan, train: Callable[..., State]
) -> None:
    counts = []
    for steps in (1, 1 + 3 * CHECK_EVERY):
        with Waits() as waits:  # type: ignore[no-untyped-call]
            train(small_plan, CPU, steps)
        counts.append(waits.count)
    assert counts[1] - counts[0] == 3


class Abroad(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Plays a GPU on torch's meta device, which has no numbers: counts the copies and looks that the processor would wait for."""

    waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._pin_memory.default:
            return args[0]
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.waits += 1
            return 1.0
        if (
            func is torch.ops.aten._to_copy.default
            and torch.device(kwargs.get("device") or args[0].device) != args[0].device
        ):
            self.waits += not kwargs.get("non_blocking")
            if args[0].is_meta:
                return torch.zeros(args[0].shape)
        return func(*args, **kwargs)


def adamw_abroad(groups: Any, settings: Optimizer, device: torch.device) -> torch.optim.Optimizer:
    """AdamW as the engine makes it, for a device that has no fused one: without what the fused one is told."""
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: vars(optimizer).update(found_inf=None))
    return optimizer


@pytest.mark.parametrize("train", [pretrained, finetuned, functools.partial(pretrained, objective="features")])
def test_a_batch_goes_to_the_device_without_waiting_for_it(
    small_plan: Plan, train: Callable[..., State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU's loop this sees all but its kernels; tensors of two devices in one operation are torch's own error."""
    monkeypatch.setattr("cxrbase_model.engine.adamw", adamw_abroad)
    monkeypatch.setattr(
        "cxrbase_model.augment._normal", lambda shape, generator, device: torch.empty(shape, device=device)
    )
    counts = []
    for steps in (1, 3):
        with Abroad() as abroad:  # type: ignore[no-untyped-call]  # torch has no types for it
            train(small_plan, Runtime(torch.device("meta"), micro_batch=5), steps)
        counts.append(abroad.waits)
    assert counts[0] == counts[1], "the two steps more have waited for nothing"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_attention_in_plain_products_computes_the_same(small_plan: Plan, precision: str) -> None:
    stage = small_plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    model = build_objective(small_plan, stage)
    visible, hidden = model.random_masking(8, 0.75, torch.Generator().manual_seed(0))
    losses = []
    for runtime in (CPU, replace(CPU, precision=precision)):
        runtime.prepared(model)
        losses.append(model(pictures() / 255, visible, hidden))
    fused = [part.fused_attn for part in model.modules() if isinstance(part, Attention)]
    assert set(fused) == {precision == "float32"}
    torch.testing.assert_close(*losses)
