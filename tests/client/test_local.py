"""A hospital's training that several processes share, as the deployed path runs it."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import answer, perform
from client.dataset import Cache
from client.local import Training, devices_of, train_locally
from client.site import Compute, Site
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import unpack
from cxrbase_model.engine import Progress, Runtime
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.privacy import Privacy
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, load_state, norm, state_of, subtract
from cxrbase_model.variates import controlled
from sim.processtree import descendants

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def shared(site: Site) -> Site:
    """The same hospital, whose trainings two processes share."""
    return replace(site, compute=replace(site.compute, devices=2))


def helpers() -> list[int]:
    """The processes that take part in a training."""
    return [each.pid for each in descendants(os.getpid()) if "spawn_main" in each.command]


def assert_close(found: State, expected: State) -> None:
    assert norm(subtract(found, expected)) < 1e-3 * norm(expected)


def test_two_processes_send_what_one_does(site: Site, shared: Site, plan: Plan, task_for: Callable[..., Task]) -> None:
    plan = replace(plan, aggregation=replace(plan.aggregation, mixing=0.05, proximal=0.1))
    first, second = (task_for("mae", number, plan=plan) for number in (1, 2))
    perform(first, site)  # leaves moments, and an encoder to mix in
    one, two = perform(second, site), perform(second, shared)
    assert (two.steps, two.examples, two.metrics) == (one.steps, one.examples, one.metrics)
    assert two.loss == pytest.approx(one.loss, rel=1e-4)
    assert_close(unpack(two.update), unpack(one.update))
    assert not helpers()


def test_two_processes_draw_and_steer_as_one_does(site: Site, plan: Plan) -> None:
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    stage, cache = replace(stage, balance="findings", batch_size=5), Cache.open(site.cache_folder)
    plan = replace(
        plan,
        stages=(plan.stages[0], stage),
        aggregation=replace(plan.aggregation, scaffold=True),
        federation=replace(plan.federation, weighting="uniform"),
    )
    model = build_classifier(plan, stage)
    start = state_of(model)
    correction = {name: torch.full_like(each, 0.01) for name, each in controlled(model, plan.aggregation).items()}
    training = Training(
        plan, stage, start, start, site.cache_folder, cache.rows("train"), Progress(0, 8), 3, CPU,
        correction=correction, positive_weights=torch.full((3,), 2.0),
    )  # fmt: skip
    load_state(model, start)
    one, two = (train_locally(training, model, cache, Compute(device="cpu", devices=n), None) for n in (1, 2))
    assert_close(subtract(two.state, start), subtract(one.state, start))
    assert_close(two.path, one.path)
    assert norm(one.path) > 0


def test_a_killed_process_is_a_code_and_the_round_goes_on_from_its_checkpoint(
    site: Site, shared: Site, plan: Plan, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = plan.stages[0]
    assert isinstance(stage, PretrainStage)
    task = task_for("mae", plan=replace(plan, stages=(replace(stage, local_epochs=20.0), *plan.stages[1:])))
    expected = unpack(perform(task, site).update)
    monkeypatch.setattr("client.moments.LocalCheckpoint", functools.partial(LocalCheckpoint, seconds=0.0))
    kept = site.private / "optimizer" / "interrupted.safetensors"
    killer = threading.Thread(target=kill_one, args=(kept,))
    killer.start()
    reply = answer(task, shared)
    killer.join()
    assert (reply.code, reply.update) == (Code.FAILED, b"")
    assert kept.exists()
    assert not helpers(), "the other one has ended, too"
    assert_close(unpack(perform(task, shared).update), expected)
    assert not kept.exists()


def kill_one(kept: Path) -> None:
    """kill -9 of one process, once the training has left a checkpoint."""
    while not kept.exists():
        time.sleep(0.005)
    os.kill(helpers()[-1], signal.SIGKILL)


def test_a_private_training_stays_in_one_process(
    shared: Site, plan: Plan, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("noise has one source")

    monkeypatch.setattr("client.local.launch", fail)
    private = replace(plan, stages=plan.stages[:1], privacy=Privacy())
    assert answer(task_for("mae", plan=private), shared).code is None
    assert answer(task_for("mae"), shared).code is Code.FAILED


def test_a_gpu_is_read_ahead_for_in_the_same_order(site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, cache, threads = plan.stages[0], Cache.open(site.cache_folder), set[str]()
    assert isinstance(stage, PretrainStage)
    pixels = Cache.pixels

    def noted(self: Cache, rows: Any) -> Any:
        threads.add(threading.current_thread().name.split("_")[0])
        return pixels(self, rows)

    monkeypatch.setattr(Cache, "pixels", noted)
    on_cpu = Training(plan, stage, {}, {}, site.cache_folder, cache.rows("train"), Progress(0, 8), 3, CPU)
    on_gpu = replace(on_cpu, runtime=Runtime(torch.device("cuda")))
    expected = [images for images, _ in on_cpu.batches(cache)]
    assert threads == {"MainThread"}
    assert all(
        torch.equal(*pair) for pair in zip(expected, (images for images, _ in on_gpu.batches(cache)), strict=True)
    )
    assert threads == {"MainThread", "batches"}


def test_a_hospital_uses_all_its_gpus_or_as_many_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices_of(Compute(), gpu) == [torch.device("cuda", number) for number in range(4)]
    assert devices_of(Compute(devices=2), gpu) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert devices_of(Compute(device="cuda:3"), torch.device("cuda:3")) == [torch.device("cuda", 3)]
    assert devices_of(Compute(), cpu) == [cpu]
    assert devices_of(Compute(devices=3), cpu) == [cpu] * 3
    with pytest.raises(SettingsError, match=r"compute\.devices: expected at most 4, the GPUs that are there, found 5"):
        devices_of(Compute(devices=5), gpu)
    with pytest.raises(SettingsError, match="devices: expected 1 where device names one GPU, cuda:3; found 2"):
        Compute(device="cuda:3", devices=2)
