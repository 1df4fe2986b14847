"""`cxrbase-sim study`: what pretraining, labels and recipe are worth on folders of real pictures."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
from collections.abc import Iterable
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
from sim.study import Job, Pictures, StudyConfig, fingerprint, jobs, pretraining_name, read_study
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
    study.add_argument(
        "--pretraining",
        metavar="NAME",
        help="do this pretraining only, for example equalize-guangzhou-1; other plans may start from it",
    )
    study.set_defaults(run=_study)


def _study(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise SettingsError(f"--workers: expected at least 1, found {arguments.workers}")
    config, plan = read_study(arguments.config)
    key = _key(config, plan, arguments.pretraining) if arguments.pretraining else None
    _claim(arguments.out, fingerprint(config, plan, arguments.data))
    forms = [key[1]] if key else sorted({recipe.pictures for recipe in config.recipes})
    sites = {form: _sites(config, plan, form, arguments) for form in forms}
    missing = [each for each in config.unseen if each not in [file.parent.name for file in sites[forms[0]]]]
    if missing:
        raise SettingsError(f"unseen: expected hospitals of {arguments.data}, found {', '.join(missing)}")
    bench = Bench(config, plan, sites, arguments.out, runtime_for(Compute(threads=1), plan.precision))
    if key:
        torch.set_num_threads(1)  # as a worker has
        console.print(f"  {bench.pretrained(key[1], key[2], key[0]).with_suffix('')}")
        return 0
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
    keys = _keys(bench.config, todo)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(bench,)) as pool:
        for number, each in enumerate(as_completed([pool.submit(_pretrain, key) for key in keys]), start=1):
            each.result()
            console.print(f"pretraining {number} of {len(keys)}")
        waiting = {pool.submit(_do, job): job for job in todo}
        for number, done in enumerate(as_completed(waiting), start=1):
            done.result()
            console.print(f"{number} of {len(todo)}: {waiting[done].name}")


Key = tuple[int, Pictures, str]  # seed, form of the pictures, hospital that is left out


def _keys(config: StudyConfig, todo: Iterable[Job]) -> list[Key]:
    """The pretrainings that jobs start from, each once."""
    return sorted(
        {
            (config.pretraining_seed(job.seed), job.recipe.pictures, job.without)
            for job in todo
            if job.recipe.init == "mae"
        }
    )


def _key(config: StudyConfig, plan: Plan, name: str) -> Key:
    known = {pretraining_name(key[1], key[2], key[0]): key for key in _keys(config, jobs(config, plan))}
    if name not in known:
        raise SettingsError(f"--pretraining: expected one of {', '.join(known)}; found {name}")
    return known[name]


_bench: Bench


def _start(bench: Bench) -> None:
    global _bench  # noqa: PLW0603  # a worker process has one
    torch.set_num_threads(1)
    _bench = bench


def _pretrain(key: Key) -> None:
    seed, pictures, without = key
    _bench.pretrained(pictures, without, seed)


def _do(job: Job) -> None:
    _bench.do(job)
