"""cxrbase-model: what a researcher asks of the model alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from cxrbase_model.alone import Arrays, train_plan
from cxrbase_model.engine import Runtime, TrainingDiverged
from cxrbase_model.initial import InitError
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.parallel import World
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
    except (InitError, TrainingDiverged) as error:
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
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
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
    device = torch.device(arguments.device)
    if "LOCAL_RANK" in os.environ:  # started by torchrun, a process a GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    runtime = Runtime(
        device, plan.precision, arguments.micro_batch, arguments.compile, arguments.recompute, arguments.deterministic
    )
    try:
        for line in train_plan(plan, Arrays(arguments.arrays, plan), arguments.out, runtime):
            if World.current().rank == 0:
                print(line, flush=True)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
