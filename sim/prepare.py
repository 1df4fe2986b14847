"""Simulated hospitals made ready: each a real archive with a SITE.yaml, ingested by the client's own ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from client.archive.ingest import ingest
from client.site import read_site
from cxrbase_model.plan import Plan
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError
from sim.config import FolderHospitals, PhantomHospitals, SimConfig
from sim.hospitals import write_hospitals

Progress = Callable[[str, int, int], None]  # what, done, total


def prepare(config: SimConfig, plan: Plan, data: Path, out: Path, progress: Progress) -> list[Path]:
    """The SITE.yaml of each hospital, sorted by name, its cache built to the plan.

    Phantom hospitals are written to `data` where they are not there yet. Folder hospitals stay where they are; what is made of
    them goes to `out`. SettingsError where `data` does not hold what the configuration says.
    """
    if isinstance(config.hospitals, PhantomHospitals):
        sites = _phantoms(config.hospitals, data, progress)
    else:
        sites = _folders(config.hospitals, plan, data, out)
    for file in sites:
        site = read_site(file)
        fix_secret(site.private, site.site)
        ingest(site, plan.data, progress=_named(progress, f"ingest {site.site}"))
    return sites


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _phantoms(hospitals: PhantomHospitals, data: Path, progress: Progress) -> list[Path]:
    found = sorted(data.glob("*/SITE.yaml"))
    if not found:
        return sorted(write_hospitals(data, hospitals.count, hospitals.pictures, hospitals.seed, progress))
    if len(found) != hospitals.count:
        raise SettingsError(
            f"{data}: expected {hospitals.count} hospitals, found {len(found)}; name an empty folder by --data"
        )
    return found


def _folders(hospitals: FolderHospitals, plan: Plan, data: Path, out: Path) -> list[Path]:
    if not data.is_dir():
        raise SettingsError(f"{data}: there is no such folder; --data names one with a sub-folder for each hospital")
    folders = sorted(path.parent for path in data.glob("*/labels.csv"))
    if not folders:
        raise SettingsError(f"{data}: expected sub-folders with images/ and labels.csv, found none")
    return [_folder_site(hospitals, plan, folder.resolve(), out / "hospitals" / folder.name) for folder in folders]


def _folder_site(hospitals: FolderHospitals, plan: Plan, folder: Path, home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    names = {finding: finding for finding in plan.data.findings} | hospitals.names
    site = {
        "schema": 1,
        "site": folder.name,
        "archive": {"kind": "folder", "path": str(folder)},
        "labels": {"names": names, "ignore": list(hospitals.ignore)},
        "compute": {"devices": 1},  # hospitals share the machine
        "policy": {"plans": "any", "patients": 1},  # made up or public; studies use very few labels
    }
    file = home / "SITE.yaml"
    file.write_text(yaml.safe_dump(site, sort_keys=False), encoding="utf-8")
    return file


def fix_secret(private: Path, site: str) -> None:
    """A simulated hospital's secret follows from its name, so that splits, and with them runs, repeat; a real one's is random."""
    path = private / "secret.key"
    if not path.exists():
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"{derive_seed(0, 'simulated secret', site):064x}\n", encoding="ascii")
