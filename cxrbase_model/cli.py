"""cxrbase-model: what a researcher asks of the model alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import read_plan
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import byte_size, state_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 2 wrong usage or plan."""
    parser = argparse.ArgumentParser(prog="cxrbase-model", description="The model and its plan, without any hospital.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="parameters and message size of a plan's model")
    info.add_argument("plan", type=Path, metavar="PLAN.yaml", help="for example configs/plans/demo.yaml")
    arguments = parser.parse_args(argv)
    try:
        plan = read_plan(arguments.plan)
    except SettingsError as error:
        print(f"cxrbase-model: {error}", file=sys.stderr)
        return 2
    model = build_autoencoder(plan)
    print(f"encoder     {sum(p.numel() for p in model.encoder.parameters()) / 1e6:.2f} M parameters")
    print(f"autoencoder {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    print(f"message     {byte_size(state_of(model)) / 1e6:.1f} MB in float32")
    return 0
