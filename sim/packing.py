"""What packing costs a model: the same plan, hospitals and seeds under several `transport:` sections, AUROC beside bytes."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy import stats

from cxrbase_model.plan import EvaluateStage, Plan, read_plan
from cxrbase_model.settings import SettingsError, knob, load_yaml, read
from cxrbase_model.state import size
from cxrbase_model.transport import Transport
from server.store import RunStore
from sim.config import FolderHospitals, PhantomHospitals, SimConfig
from sim.faults import in_process
from sim.prepare import prepare
from sim.progress import StepProgress

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class PackingConfig:
    """A comparison; `plan` is relative to the file it is written in. The first packing is what the others are compared with."""

    plan: Path = knob(why="the training plan, whose own transport section is not used")
    packings: dict[str, Transport] = knob(why="a name for each transport section")
    hospitals: PhantomHospitals | FolderHospitals = knob(factory=PhantomHospitals, why="who takes part")
    seeds: tuple[int, ...] = knob((0, 1, 2), why="the plan's seed in each run: weights, order of pictures, masks")


@dataclass(frozen=True)
class Outcome:
    """One run: mean AUROC over hospitals and findings by stage, and bytes of its training rounds, of float32 both ways."""

    packing: str
    seed: int
    auroc: dict[str, float]
    down: float
    up: float
    evaluation: float  # bytes down of the evaluations, of float32


def read_packing(path: Path) -> tuple[PackingConfig, Plan]:
    """Read a comparison and its plan; SettingsError names the file and the dotted key."""
    mapping = load_yaml(path)
    try:
        config = read(PackingConfig, mapping)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return config, read_plan(path.parent / config.plan)


def run_one(folder: Path, plan: Plan, packing: str, sites: Sequence[Path]) -> Outcome:
    """Run a plan in this process, or read what an earlier call found; a run that did not end is begun anew."""
    file = folder / "outcome.json"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        outcome = _outcome(in_process(folder, plan, sites), packing)
        file.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return Outcome(**json.loads(file.read_text(encoding="utf-8")))


def _outcome(store: RunStore, packing: str) -> Outcome:
    records = store.records()[1:]
    sent = {True: [0.0, 0.0], False: [0.0, 0.0]}  # whether of a training: bytes sent, bytes in float32
    received = 0.0
    auroc: dict[str, list[float]] = {}
    for record in records:
        whole = 4.0 * size(store.stage_state(record["model"]))
        for line in record["hospitals"]:
            if line["status"] != "admitted":
                continue
            counts = sent[record["kind"] != "evaluate"]
            counts[0], counts[1] = counts[0] + line["bytes_sent"], counts[1] + whole
            received += line["bytes_received"]
            for stage, found in line.get("evaluations", {}).items():
                if found["mean_auroc"] is not None:
                    auroc.setdefault(stage, []).append(_value(found["mean_auroc"]))
    means = {stage: statistics.mean(values) for stage, values in auroc.items()}
    return Outcome(
        packing, store.plan.seed, means, sent[True][0] / sent[True][1], received / sent[True][1],
        sent[False][0] / max(sent[False][1], 1.0),
    )  # fmt: skip


def _value(cell: Any) -> float:
    return float(cell["value"] if isinstance(cell, dict) else cell)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: each packing's bytes and AUROC, and its difference to the first packing of the same seed,

    with a 95 % interval of the mean difference over seeds.
    """
    first = outcomes[0].packing
    names = list(dict.fromkeys(outcome.packing for outcome in outcomes))
    base = {outcome.seed: outcome for outcome in outcomes if outcome.packing == first}
    lines = ["| packing | bytes down | bytes up | evaluations down | model | AUROC by seed | mean | less "
             f"`{first}`, by seed | mean (95 %) |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        found = sorted((each for each in outcomes if each.packing == name), key=lambda each: each.seed)
        down, up, evaluation = (
            statistics.mean(getattr(each, what) for each in found) for what in ("down", "up", "evaluation")
        )
        for stage in found[0].auroc:
            values = [each.auroc[stage] for each in found]
            apart = [each.auroc[stage] - base[each.seed].auroc[stage] for each in found]
            lines.append(
                f"| {name} | {down:.3f} | {up:.3f} | {evaluation:.3f} | {stage} | {_row(values)} | {statistics.mean(values):.4f} "
                f"| {_row(apart, sign='+')} | {statistics.mean(apart):+.4f}{_interval(apart)} |"
            )
    return "\n".join(lines) + "\n"


def _interval(apart: Sequence[float]) -> str:
    """Student's interval of the mean over seeds, nothing where there is but one or none differs."""
    if len(apart) < 2 or not any(apart):
        return ""
    half = stats.t.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / math.sqrt(len(apart))
    return f" ({statistics.mean(apart) - half:+.4f} to {statistics.mean(apart) + half:+.4f})"


def _row(values: Sequence[float], sign: str = "") -> str:
    return " ".join(f"{value:{sign}.4f}" for value in values)


def add(commands: Any) -> None:
    """`packing`."""
    packing = commands.add_parser("packing", help="compare transport sections: AUROC beside bytes")
    packing.add_argument("config", type=Path, metavar="PACKING.yaml", help="for example configs/sim/packing.yaml")
    packing.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with a sub-folder a hospital")
    packing.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="results; the same command goes on there"
    )
    packing.set_defaults(run=_packing)


def _packing(arguments: argparse.Namespace) -> int:
    config, plan = read_packing(arguments.config)
    if not config.packings or not config.seeds:
        raise SettingsError(f"{arguments.config}: packings and seeds: expected at least one of each")
    if not any(isinstance(stage, EvaluateStage) for stage in plan.stages):
        raise SettingsError(f"{arguments.config}: plan: expected an evaluation among its stages, found none")
    with StepProgress(console) as steps:
        simulation = SimConfig(plan=config.plan, hospitals=config.hospitals)
        sites = prepare(simulation, plan, arguments.data, arguments.out, steps.update)
    outcomes = []
    for seed in config.seeds:
        for name, transport in config.packings.items():
            one = replace(plan, seed=seed, transport=transport)
            outcomes.append(run_one(arguments.out / f"{name}-{one.digest[:8]}", one, name, sites))
            console.print(f"{name}, seed {seed}: {outcomes[-1].auroc}")
    text = table(outcomes)
    (arguments.out / "packing.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False)
    return 0
