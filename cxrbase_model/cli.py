"""cxrbase-model: what a researcher asks of the model alone."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from cxrbase_model.alone import Arrays, train_plan
from cxrbase_model.engine import Runtime, TrainingDiverged
from cxrbase_model.initial import InitError
from cxrbase_model.launch import WorkerLost, launch
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.parallel import World, join
from cxrbase_model.plan import Plan, read_plan
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import byte_size, state_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 1 failed, 2 wrong usage, plan or data."""
    arguments = _parser().parse_args(argv)
    try:
        plan = read_plan(arguments.plan)
        arguments.run(plan, arguments)
    except SettingsError as error:
        print(f"cxrbase-model: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"cxrbase-model: out of memory with one picture at a time; try --recompute ({error})", file=sys.stderr)
        return 1
    except (InitError, TrainingDiverged, WorkerLost) as error:
        print(f"cxrbase-model: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cxrbase-model", description="The model and its plan, without any hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="parameters and message size of a plan's model")
    info.set_defaults(run=_info)
    train = commands.add_parser(
        "train", help="train and evaluate a whole plan on one table of pictures (see docs/engine.md)"
    )
    train.set_defaults(run=_train)
    for command in (info, train):
        command.add_argument("plan", type=Path, metavar="PLAN.yaml", help="for example configs/plans/demo.yaml")
    train.add_argument("arrays", type=Path, help="folder of pictures.npy, labels.npy and patients.npy")
    train.add_argument(
        "--out", type=Path, required=True, help="folder for weights and evaluations; what it has is gone on with"
    )
    train.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda or cuda:N; default %(default)s",
    )
    train.add_argument(
        "--devices", type=int, metavar="N", help="GPUs that share each batch, or processes on a CPU; default: all GPUs"
    )
    train.add_argument(
        "--micro-batch", type=int, metavar="N", help="pictures at once; memory decides where it is not given"
    )
    train.add_argument("--compile", action="store_true", help="torch.compile; pays on a GPU after a minute")
    train.add_argument("--recompute", action="store_true", help="a third more work for a fraction of the memory")
    train.add_argument("--deterministic", action="store_true", help="the same bits each time on the same GPU")
    return parser


def _info(plan: Plan, arguments: argparse.Namespace) -> None:
    model = build_autoencoder(plan)
    print(f"encoder     {sum(p.numel() for p in model.encoder.parameters()) / 1e6:.2f} M parameters")
    print(f"autoencoder {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    print(f"message     {byte_size(state_of(model)) / 1e6:.1f} MB in float32")


def _train(plan: Plan, arguments: argparse.Namespace) -> None:
    for option in ("devices", "micro_batch"):
        number = getattr(arguments, option)
        if number is not None and number < 1:
            raise SettingsError(f"--{option.replace('_', '-')}: expected at least 1, found {number}")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise SettingsError(f"--out: expected a folder, found the file {arguments.out}")
    runtime = Runtime(
        _device(arguments.device, arguments.devices), plan.precision, arguments.micro_batch, arguments.compile, arguments.recompute,
        arguments.deterministic,
    )  # fmt: skip
    job = _Job(plan, arguments.arrays, arguments.out, runtime)
    if "LOCAL_RANK" in os.environ:  # started by torchrun, a process a GPU, perhaps on several machines
        _train_in_torchrun(job)
        return
    count = arguments.devices or (1 if plan.privacy is not None else max(1, _gpus(runtime.device)))
    if count == 1:
        _train_share(job, runtime.device)
    else:
        devices = [_numbered(runtime.device, number) for number in range(count)]
        launch(_train_share, job, devices, torch.get_num_threads())


@dataclass(frozen=True)
class _Job:
    """What each process of a training is told."""

    plan: Plan
    arrays: Path
    out: Path
    runtime: Runtime


def _train_share(job: _Job, device: torch.device) -> None:
    """What each process does; the first one tells of it."""
    arrays, runtime = Arrays(job.arrays, job.plan), replace(job.runtime, device=device)
    for line in train_plan(job.plan, arrays, job.out, runtime):
        if World.current().rank == 0:
            print(line, flush=True)


def _train_in_torchrun(job: _Job) -> None:
    device = _numbered(job.runtime.device, int(os.environ["LOCAL_RANK"]))
    join(device)
    try:
        _train_share(job, device)
    finally:
        dist.destroy_process_group()


def _device(name: str, devices: int | None) -> torch.device:
    """The device of that name; SettingsError where it is not there, or not as often as is wanted."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise SettingsError(f"--device: expected cpu, cuda or cuda:N, found {name!r}")
    device, there = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise SettingsError(
            f"--device: expected cpu, or one of the GPUs that torch finds, which are {there}; found {name}"
        )
    most = there if name == "cuda" else 1
    if device.type == "cuda" and (devices or 1) > most:
        raise SettingsError(f"--devices: expected at most {most} with --device {name}, found {devices}")
    return device


def _gpus(device: torch.device) -> int:
    """How many GPUs a device's name stands for: all for cuda, one for cuda:N, none for cpu."""
    return torch.cuda.device_count() if str(device) == "cuda" else 0


def _numbered(device: torch.device, number: int) -> torch.device:
    return torch.device("cuda", number) if str(device) == "cuda" else device


if __name__ == "__main__":
    sys.exit(main())
