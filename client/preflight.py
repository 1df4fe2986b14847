"""What has to be right on the hospital's machine before a training, an item each, with what to do where it is not."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from client.approval import Approvals
from client.archive.open_source import open_source
from client.archive.pacs.settings import PacsArchive
from client.archive.sources import SourceLost
from client.budget import ledger_of, standing, told, told_left
from client.dataset import Cache, CacheError
from client.forecast import cost
from client.ledger import LedgerError
from client.local import devices_of
from client.policy import objection
from client.site import Compute, Site
from cxrbase_model.messages import PROTOCOL
from cxrbase_model.plan import Plan
from cxrbase_model.settings import SettingsError

_LEAST_FREE = 2 << 30  # bytes: logs, moments of large models, and room to write a cache anew
_MATRIX = 256  # side of the product that shows whether a device computes


@dataclass(frozen=True)
class Item:
    """One thing that was looked at; `remedy` says what to do where it has not passed."""

    name: str
    passed: bool
    text: str
    remedy: str = ""


def preflight(site: Site, plan: Plan | None = None) -> Iterator[Item]:
    """Look at everything a training needs of this machine, and with a plan at whether it could run; nothing is changed."""
    yield Item("release", True, f"CXRBase {version('cxrbase')}, protocol {PROTOCOL}, torch {torch.__version__}")
    yield _private(site.private)
    yield _archive(site)
    yield _disk(site.private)
    yield _device(site.compute)
    yield from _ledger(site)
    try:
        cache = Cache.open(site.cache_folder)
    except CacheError as error:
        yield Item("cache", False, str(error), "run cxrbase-client ingest SITE.yaml --plan PLAN.yaml")
        return
    yield _pictures(cache)
    yield _labels(cache)
    yield _delta(site, cache)
    if plan is not None:
        yield from _plan(plan, site, cache)


def _private(folder: Path) -> Item:
    name = "private folder"
    if not folder.is_dir():
        return Item(name, False, f"{folder} is not there", "run cxrbase-client ingest, which makes it")
    others = [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    if others:
        text = f"{len(others)} files or folders in {folder} can be read by others, such as {others[0].name}"
        return Item(name, False, text, f"chmod -R go= {folder}")
    return Item(name, True, f"{folder}, its owner's alone")


def _archive(site: Site) -> Item:
    kind = site.archive.kind
    try:
        if isinstance(site.archive, PacsArchive):
            _ask_pacs(site)
            return Item("archive", True, f"{kind}, the PACS answers and lets us in")
        with closing(open_source(site)) as source:
            if not source.present():
                return Item("archive", False, f"{kind}, not there", "is it mounted, and is archive.path right?")
    except SourceLost as error:
        return Item("archive", False, str(error), "see the setting it names; training goes on from the cache meanwhile")
    return Item("archive", True, f"{kind}, there")


def _ask_pacs(site: Site) -> None:
    from client.archive.pacs.source import PacsSource  # its network libraries are only loaded where there is a PACS

    with closing(open_source(site)) as source:
        if isinstance(source, PacsSource):
            source.ask()


def _disk(folder: Path) -> Item:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free for {folder}"
    return Item("disk", free >= _LEAST_FREE, text, f"make room: {_LEAST_FREE / 1e9:.1f} GB are wanted")


def _device(compute: Compute) -> Item:
    wanted = compute.device
    name = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        devices = devices_of(compute, torch.device(name))
        works = all(_computes(device) for device in set(devices))
    except SettingsError as error:
        return Item("device", False, str(error), "compute.devices: as many as there are, or none given for all")
    except (RuntimeError, AssertionError):  # torch says AssertionError where it was built without CUDA
        works, devices = False, []
    if not works:
        return Item(
            "device",
            False,
            f"{name} cannot be used",
            "compute.device: is the GPU's driver there? cpu or auto work without",
        )
    if devices[0].type == "cuda":
        found = [torch.cuda.get_device_properties(device) for device in devices]
        return Item("device", True, "; ".join(f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in found))
    processes = f", processes: {len(devices)}" if len(devices) > 1 else ""
    return Item("device", True, f"{name}, threads: {compute.threads}{processes}")


def _computes(device: torch.device) -> bool:
    matrix = torch.ones(_MATRIX, _MATRIX, device=device)
    return bool((matrix @ matrix == _MATRIX).all())


def _pictures(cache: Cache) -> Item:
    train, patients = len(cache.rows("train")), len(np.unique(cache.patients))
    text = f"{len(cache)} pictures of {patients} patients, {train} of them for training"
    return Item("cache", train > 0, text, "look at private/ingest.html for why so little is used")


def _labels(cache: Cache) -> Item:
    labelled = int(np.isfinite(cache.labels).any(axis=1).sum())
    return Item(
        "labels", True, f"{labelled} pictures have some" if labelled else "none; takes part in pretraining only"
    )


def _ledger(site: Site) -> Iterator[Item]:
    remedy = "see cxrbase-client ledger SITE.yaml and docs/ledger.md; until then no task is done"
    try:
        now = standing(site)
        lines = ledger_of(site).count()
    except LedgerError as error:
        yield Item("ledger", False, str(error), remedy)
        return
    yield Item("ledger", True, f"{lines} lines, complete and unaltered" if lines else "empty: nothing has left yet")
    text = f"epsilon {told(now.spent)} is spent for a {now.unit}, at delta {now.delta:g}"
    if now.spent == math.inf:
        text = f"no epsilon can be stated for a {now.unit}: what has left before had no guarantee for one"
    if now.budget is None or now.left is None:
        yield Item("budget", True, f"{text}; policy.epsilon sets no budget")
        return
    text = f"{text}; {told_left(now.left)} of {told(now.budget)} is left"
    yield Item("budget", now.left > 0, text, "every training will be refused; raise policy.epsilon only on purpose")


def _delta(site: Site, cache: Cache) -> Item:
    patients = len(np.unique(cache.patients))
    text = f"{site.policy.delta:g}, and one over the number of patients is {1 / max(1, patients):.1g}"
    return Item("delta", site.policy.delta * patients < 1, text, "policy.delta: choose one well below that")


def _plan(plan: Plan, site: Site, cache: Cache) -> Iterator[Item]:
    fits = cache.spec == plan.data
    text = f"{plan.name} ({plan.digest[:12]}) {'fits the cache' if fits else 'wants another cache'}"
    yield Item("plan", fits, text, "run cxrbase-client ingest SITE.yaml with --plan and this plan")
    against = {found for stage in plan.stages if (found := objection(plan, stage.name, site))}
    text = "; ".join(sorted(against)) or "allows every stage now"
    yield Item("policy", not against, text, "change policy in SITE.yaml, or leave it: the tasks will be refused")
    yield from _cost(plan, site, cache)
    if site.policy.plans == "ask":
        approved = Approvals(site.private).approved(plan)
        remedy = "run cxrbase-client plans SITE.yaml --approve and the plan's file or digest, if you agree with it"
        yield Item("approval", approved, "given" if approved else "the plan is not approved", remedy)


def _cost(plan: Plan, site: Site, cache: Cache) -> Iterator[Item]:
    try:
        now = standing(site)
    except LedgerError:  # told above
        return
    after, text = cost(plan, site, cache, now)
    allowed = now.budget is None or (plan.privacy is not None and after <= now.budget)
    yield Item("privacy of the plan", allowed, text, "the tasks will be refused, from the round on that is too much")
