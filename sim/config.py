"""What a researcher writes to simulate hospitals: which plan, which hospitals, how many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cxrbase_model.plan import Plan, read_plan
from cxrbase_model.settings import SettingsError, knob, load_yaml, read


@dataclass(frozen=True)
class PhantomHospitals:
    """Made-up hospitals, written as DICOM archives where they are not there yet."""

    kind: str = knob("phantom", choices=("phantom",), why="names the type of hospitals")
    count: int = knob(3, unit="hospitals", low=1, high=1000, why="number of hospitals")
    pictures: int = knob(320, unit="pictures", low=20, high=100_000, why="frontal radiographs per hospital")
    seed: int = knob(0, low=0, high=2**31 - 1, why="seed of the phantoms; the same seed gives the same files")


@dataclass(frozen=True)
class FolderHospitals:
    """Real pictures: each sub-folder with images/ and labels.csv is a hospital."""

    kind: str = knob("folders", choices=("folders",), why="names the type of hospitals")
    names: dict[str, str] = knob(
        factory=dict, why="names of findings in labels.csv to names in the plan, where they differ"
    )
    ignore: tuple[str, ...] = knob((), why="findings in labels.csv that the plan does not learn")


@dataclass(frozen=True)
class SimConfig:
    """One simulation; `plan` is relative to the file it is written in."""

    plan: Path = knob(why="the training plan")
    hospitals: PhantomHospitals | FolderHospitals = knob(factory=PhantomHospitals, why="who takes part")
    data: Path | None = knob(None, why="folder of the hospitals; --data overrides it")
    concurrent: int = knob(2, unit="hospitals", low=1, high=256, why="hospitals that train at the same time")
    threads: int = knob(1, low=1, high=256, why="CPU threads of each; results are equal only for equal numbers")
    noise_seed: int | None = knob(
        None, low=0, high=2**31 - 1,
        why="repeats the server's noise of aggregation.privacy; who knows it can take the noise off, which the report says",
    )  # fmt: skip
    gpu_share: float = knob(0.0, low=0.0, high=1.0, why="share of one GPU that each takes; 0 trains on the CPU")


def read_config(path: Path) -> tuple[SimConfig, Plan]:
    """Read a simulation and its plan; SettingsError names the file and the dotted key."""
    mapping = load_yaml(path)
    try:
        config = read(SimConfig, mapping)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return config, read_plan(path.parent / config.plan)
