"""`cxrbase-sim arrays`: simulated hospitals pooled into the arrays that `cxrbase-model train` reads, for training without a federation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from client.dataset import Cache
from client.site import read_site
from cxrbase_model.files import private_folder
from cxrbase_model.settings import SettingsError
from sim.config import read_config
from sim.prepare import prepare
from sim.progress import StepProgress

console = Console(highlight=False, soft_wrap=True)


def add(commands: Any) -> None:
    """`arrays`."""
    arrays = commands.add_parser("arrays", help="pool simulated hospitals into arrays for cxrbase-model train")
    arrays.add_argument("config", type=Path, metavar="CONFIG.yaml", help="for example configs/sim/demo.yaml")
    arrays.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the hospitals, instead of the configuration's"
    )
    arrays.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the arrays")
    arrays.set_defaults(run=_arrays)


def _arrays(arguments: argparse.Namespace) -> int:
    config, plan = read_config(arguments.config)
    data = arguments.data or config.data
    if data is None:
        raise SettingsError(f"{arguments.config}: data: is required here or by --data (folder of the hospitals)")
    with StepProgress(console) as steps:
        sites = prepare(config, plan, data, arguments.out, steps.update)
    write_arrays(sites, arguments.out)
    console.print(f"next: cxrbase-model train {arguments.config.parent / config.plan} {arguments.out} --out runs/alone")
    return 0


def write_arrays(sites: list[Path], out: Path) -> None:
    """Write pictures.npy, labels.npy and patients.npy, as `cxrbase_model.alone.Arrays` reads them, of ingested hospitals."""
    caches = [Cache.open(read_site(file).cache_folder) for file in sites]
    tables: dict[str, list[NDArray[Any]]] = {
        "pictures": [cache.pixels(np.arange(len(cache))) for cache in caches],
        "labels": [cache.labels for cache in caches],
        "patients": [cache.patients + (number << 32) for number, cache in enumerate(caches)],
    }
    private_folder(out)  # they may be patients' pictures
    for name, parts in tables.items():
        np.save(out / f"{name}.npy", np.concatenate(parts))
