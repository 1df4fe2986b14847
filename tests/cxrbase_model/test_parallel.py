"""Two processes that train together do what one does with the same batches.

The file is also the program of those processes: `test_parallel.py RANK SIZE FOLDER`.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cxrbase_model.classifier import build_classifier
from cxrbase_model.codec import pack, unpack
from cxrbase_model.engine import Progress, Runtime, finetune, pretrain
from cxrbase_model.features import build_objective
from cxrbase_model.parallel import World
from cxrbase_model.plan import FinetuneStage, ModelSpec, Optimizer, Plan, PretrainStage, plan_from_text, plan_to_text
from cxrbase_model.state import State, digest, state_of

ROOT = Path(__file__).parents[2]
CPU = Runtime(torch.device("cpu"))
SIZES = (7, 8, 1, 8)  # pictures of each batch: shares may differ, and one may be empty


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    for size in SIZES:
        targets = (torch.rand(size, 3, generator=draw) < 0.5).float()
        targets[torch.rand(size, 3, generator=draw) < 0.4] = math.nan
        yield torch.randint(0, 256, (size, 32, 32), dtype=torch.uint8, generator=draw), targets


def train(plan: Plan) -> State:
    """Pretraining with a teacher, and fine-tuning; all weights and losses that come out, under names of their own."""
    progress, optimizer = Progress(0, len(SIZES)), Optimizer(lr=0.1, warmup=0.1, clip_grad=1.0)
    stage = plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    stage = replace(stage, objective="features", masks=2, optimizer=optimizer)
    model = build_objective(plan, stage)
    result = pretrain(model, (images for images, _ in batches()), stage, progress, 1, CPU)
    found = {f"features.{name}": tensor for name, tensor in state_of(model).items()}
    found["features.loss"] = torch.tensor(result.loss)
    tuning = plan.stage("detect")
    assert isinstance(tuning, FinetuneStage)
    tuning = replace(tuning, drop_path=0.5, optimizer=optimizer)
    classifier = build_classifier(plan, tuning)
    result = finetune(classifier, batches(), tuning, torch.full((3,), 2.0), progress, 1, CPU)
    found |= {f"detect.{name}": tensor for name, tensor in state_of(classifier).items()}
    return found | {"detect.loss": torch.tensor(result.loss)}


@pytest.fixture
def tiny_plan(small_plan: Plan) -> Plan:
    model = ModelSpec(encoder="vit_micro", patch_size=8, depth=2, decoder_width=32, decoder_depth=1, decoder_heads=2)
    return replace(small_plan, model=model)


def test_two_processes_end_in_the_weights_of_one(tiny_plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan_to_text(tiny_plan))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), "2", str(tmp_path)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    expected = train(tiny_plan)
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    first, second = (unpack((tmp_path / f"{rank}.safetensors").read_bytes()) for rank in range(2))
    assert digest(first) == digest(second), "all processes have the same weights, to the bit"
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_shares_are_the_whole_batch_in_order() -> None:
    rows = {"images": torch.arange(7), "targets": torch.arange(14).reshape(7, 2)}
    shares = [World(rank, 3).share(rows) for rank in range(3)]
    assert [len(share["images"]) for share in shares] == [3, 2, 2]
    assert torch.equal(torch.cat([share["targets"] for share in shares]), rows["targets"])


def test_one_process_alone_sums_nothing() -> None:
    assert World.current() == World(0, 1)
    tensor = torch.ones(2)
    World().sum(tensor)
    assert torch.equal(tensor, torch.ones(2))


def main(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    state = train(plan_from_text((folder / "plan.json").read_text()))
    (folder / f"{rank}.safetensors").write_bytes(pack(state))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
