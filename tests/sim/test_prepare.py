"""Folders with pictures become hospitals, and what is no such folder is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.dataset import Cache
from client.site import read_site
from cxrbase_model.plan import Plan
from cxrbase_model.settings import SettingsError, read
from sim.config import FolderHospitals, PhantomHospitals, SimConfig
from sim.prepare import prepare

CONFIG = SimConfig(plan=Path("plan.yaml"), hospitals=FolderHospitals(names={"Pneu": "Pneumonia"}, ignore=("Other",)))


@pytest.fixture
def plan() -> Plan:
    return read(
        Plan,
        {
            "schema": 1, "name": "small", "data": {"findings": ["No Finding", "Pneumonia"], "image_size": 32},
            "stages": [{"kind": "pretrain", "name": "mae"}],
        },
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two hospitals of six pictures; the second has no labels."""
    rng = np.random.default_rng(0)
    for hospital, findings in (("east", ["No Finding", "Pneu", "Other"]), ("west", [""])):
        images = tmp_path / "data" / hospital / "images"
        images.mkdir(parents=True)
        lines = ["image,patient_id,findings"]
        for number in range(6):
            coarse = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(images / f"{number}.png")
            lines.append(f"images/{number}.png,p{number // 2},{findings[number % len(findings)]}")
        (images.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def test_each_folder_is_a_hospital_with_the_plans_labels(folders: Path, plan: Plan, tmp_path: Path) -> None:
    before = sorted(folders.rglob("*"))
    told: list[tuple[str, int, int]] = []
    files = prepare(CONFIG, plan, folders, tmp_path / "run", lambda *step: told.append(step))
    assert [read_site(file).site for file in files] == ["east", "west"]
    east, west = (Cache.open(read_site(file).cache_folder) for file in files)
    assert (len(east), len(west)) == (6, 6)
    assert int(np.isfinite(east.labels).any(axis=1).sum()) == 4, "Other is not learned"
    assert int((east.labels[:, 1] == 1).sum()) == 2
    assert not np.isfinite(west.labels).any()
    assert sorted(folders.rglob("*")) == before, "the folders stay as they are"
    assert told[-1] == ("ingest west", 6, 6)


def test_the_same_folders_give_the_same_split(folders: Path, plan: Plan, tmp_path: Path) -> None:
    splits = []
    for name in ("one", "two"):
        files = prepare(CONFIG, plan, folders, tmp_path / name, lambda *step: None)
        splits.append([Cache.open(read_site(file).cache_folder).splits.tolist() for file in files])
    assert splits[0] == splits[1]


def test_a_folder_that_does_not_hold_hospitals_is_said(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere: there is no such folder; --data names one"):
        prepare(CONFIG, plan, tmp_path / "nowhere", tmp_path / "run", lambda *step: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"empty: expected sub-folders with images/ and labels\.csv, found none"):
        prepare(CONFIG, plan, tmp_path / "empty", tmp_path / "run", lambda *step: None)


def test_another_number_of_made_up_hospitals_than_there_are_is_said(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "SITE.yaml").touch()
    config = SimConfig(plan=Path("plan.yaml"), hospitals=PhantomHospitals(count=2))
    with pytest.raises(SettingsError, match=r"data: expected 2 hospitals, found 1; name an empty folder by --data"):
        prepare(config, plan, tmp_path / "data", tmp_path / "run", lambda *step: None)
