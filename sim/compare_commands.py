"""`cxrbase-sim compare`: what the aggregation rules are worth, under attack and where hospitals differ."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from client.app import runtime_for
from client.site import Compute
from cxrbase_model.plan import Plan
from cxrbase_model.settings import SettingsError
from sim.compare import CompareConfig, Job, jobs, read_compare
from sim.compare_bench import Bench
from sim.compare_findings import Findings
from sim.compare_gaps import gap_tables
from sim.compare_plot import write_plots
from sim.compare_table import tables
from sim.config import FolderHospitals, SimConfig
from sim.prepare import prepare
from sim.progress import StepProgress

console = Console(highlight=False, soft_wrap=True)


def add(commands: Any) -> None:
    """`compare`."""
    compare = commands.add_parser("compare", help="compare aggregation rules: under attack, and where hospitals differ")
    compare.add_argument("config", type=Path, metavar="STUDY.yaml", help="for example configs/sim/compare.yaml")
    compare.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the hospitals; made-up ones are written to --out without it"
    )
    compare.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="results; the same command goes on there"
    )
    compare.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes, of one thread each (default 2)"
    )
    compare.add_argument("--part", metavar="NAME", help="do the federations of one part only")
    compare.add_argument(
        "--tables", action="store_true", help="train nothing, only write tables and plots of what is there"
    )
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise SettingsError(f"--workers: expected at least 1, found {arguments.workers}")
    config, plans = read_compare(arguments.config)
    if arguments.part and arguments.part not in plans:
        raise SettingsError(f"--part: expected one of {', '.join(plans)}; found {arguments.part}")
    bench = _bench(config, plans, arguments)
    todo = [job for job in jobs(config) if arguments.part in (None, job.part.name)]
    if not arguments.tables:
        _work(bench, todo, arguments.workers)
    findings = Findings(bench)
    text = "\n".join([tables(findings), *(line for part in config.parts for line in gap_tables(findings, part))])
    (arguments.out / "compare.md").write_text(text, encoding="utf-8")
    written = write_plots(findings, arguments.out)
    console.print(text, markup=False)
    for file in [arguments.out / "compare.md", *written]:
        console.print(f"  {file}")
    return 0


def _bench(config: CompareConfig, plans: dict[str, Plan], arguments: argparse.Namespace) -> Bench:
    data = arguments.data
    if data is None and isinstance(config.hospitals, FolderHospitals):
        raise SettingsError(f"--data: is required where {arguments.config} has hospitals of kind folders")
    data = data or arguments.out / "phantoms"
    plan = next(iter(plans.values()))
    plan = dataclasses.replace(plan, data=dataclasses.replace(plan.data, validation=0.0, test=0.0))
    with StepProgress(console) as progress:
        settings = SimConfig(plan=arguments.config, hospitals=config.hospitals)
        sites = prepare(settings, plan, data, arguments.out / "pictures", progress.update)
    return Bench(
        config, plans, sites, data, arguments.out, runtime_for(Compute(device="cpu", threads=1), plan.precision)
    )


def _work(bench: Bench, todo: list[Job], workers: int) -> None:
    """All jobs in their order; in this process where it is the only one."""
    if workers == 1:
        torch.set_num_threads(1)
        for number, job in enumerate(todo, start=1):
            started = time.monotonic()
            bench.do(job)
            _tell(number, len(todo), job, time.monotonic() - started)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(bench,)) as pool:
        waiting = {pool.submit(_do, job): job for job in todo}
        for number, done in enumerate(as_completed(waiting), start=1):
            _tell(number, len(todo), waiting[done], done.result())


def _tell(number: int, count: int, job: Job, seconds: float) -> None:
    console.print(f"{number} of {count}: {job.name}, {seconds:.1f} s")


_mine: Bench


def _start(bench: Bench) -> None:
    global _mine  # noqa: PLW0603  # a worker process has one
    torch.set_num_threads(1)
    _mine = bench


def _do(job: Job) -> float:
    started = time.monotonic()
    _mine.do(job)
    return time.monotonic() - started
