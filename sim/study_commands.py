"""`cxrbase-sim study`: what pretraining, labels and recipe are worth on folders of real pictures."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from client.app import runtime_for
from client.site import Compute
from cxrbase_model.files import write_private
from cxrbase_model.plan import Plan
from cxrbase_model.settings import SettingsError
from sim.config import SimConfig
from sim.prepare import prepare
from sim.progress import StepProgress
from sim.study import Job, Pictures, StudyConfig, fingerprint, jobs, read_study
from sim.study_bench import Bench
from sim.study_page import page
from sim.study_table import tables

console = Console(highlight=False, soft_wrap=True)


def add(commands: Any) -> None:
    """`study`."""
    study = commands.add_parser("study", help="compare trainings on hospitals pooled: few labels, unseen hospitals")
    study.add_argument("config", type=Path, metavar="STUDY.yaml", help="for example configs/sim/study.yaml")
    study.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with a sub-folder a hospital")
    study.add_argument("--out", type=Path, required=True, metavar="DIR", help="results; the same command goes on there")
    study.add_argument("--workers", type=int, default=2, metavar="N", help="processes, of one thread each (default 2)")
    study.set_defaults(run=_study)


def _study(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise SettingsError(f"--workers: expected at least 1, found {arguments.workers}")
    config, plan = read_study(arguments.config)
    _claim(arguments.out, fingerprint(config, plan, arguments.data))
    forms = sorted({recipe.pictures for recipe in config.recipes})
    sites = {form: _sites(config, plan, form, arguments) for form in forms}
    missing = [each for each in config.unseen if each not in [file.parent.name for file in sites[forms[0]]]]
    if missing:
        raise SettingsError(f"unseen: expected hospitals of {arguments.data}, found {', '.join(missing)}")
    bench = Bench(config, plan, sites, arguments.out, runtime_for(Compute(threads=1), plan.precision))
    _work(bench, list(jobs(config, plan)), arguments.workers)
    text = tables(bench)
    (arguments.out / "study.md").write_text(text, encoding="utf-8")
    write_private(arguments.out / "study.html", page(bench).encode())  # there are pictures in it
    console.print(text, markup=False)
    return 0


def _claim(out: Path, mark: str) -> None:
    """Results of two studies may not mix."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "study.digest"
    if file.exists() and file.read_text(encoding="ascii") != mark:
        raise SettingsError(f"--out: {out} holds another study's results; name another folder")
    file.write_text(mark, encoding="ascii")


def _sites(config: StudyConfig, plan: Plan, form: Pictures, arguments: argparse.Namespace) -> list[Path]:
    data = dataclasses.replace(plan.data, intensity=form.intensity, remove_borders=form.remove_borders)
    plan = dataclasses.replace(plan, data=data)
    with StepProgress(console) as progress:
        return prepare(
            SimConfig(plan=config.plan, hospitals=config.hospitals), plan, arguments.data,
            arguments.out / "pictures" / form.name, progress.update,
        )  # fmt: skip


def _work(bench: Bench, todo: list[Job], workers: int) -> None:
    """Pretrainings first, each once, and then what needs them; all in this process where it is the only one."""
    if workers == 1:
        for job in todo:
            bench.do(job)
        return
    keys = sorted({_pretraining(bench, job) for job in todo if job.recipe.init == "mae"})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(bench,)) as pool:
        for number, each in enumerate(as_completed([pool.submit(_pretrain, key) for key in keys]), start=1):
            each.result()
            console.print(f"pretraining {number} of {len(keys)}")
        waiting = {pool.submit(_do, job): job for job in todo}
        for number, done in enumerate(as_completed(waiting), start=1):
            done.result()
            console.print(f"{number} of {len(todo)}: {waiting[done].name}")


def _pretraining(bench: Bench, job: Job) -> tuple[int, Pictures, str]:
    return bench.pretrained_seed(job), job.recipe.pictures, job.without


_bench: Bench


def _start(bench: Bench) -> None:
    global _bench  # noqa: PLW0603  # a worker process has one
    torch.set_num_threads(1)
    _bench = bench


def _pretrain(key: tuple[int, Pictures, str]) -> None:
    seed, pictures, without = key
    _bench.pretrained(pictures, without, seed)


def _do(job: Job) -> None:
    _bench.do(job)
