"""A comparison of rules runs its federations once and goes on where it stopped."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml

from sim.cli import main
from tests.sim.compared import STUDY, run


def test_a_comparison_writes_its_tables_and_goes_on_where_it_stopped(done: Path, tmp_path: Path) -> None:
    study = tmp_path / "copy"
    shutil.copytree(done, study)
    (study / "study.yaml").write_text(yaml.safe_dump({**STUDY, "parts": STUDY["parts"][:1]}))
    text = (study / "out" / "compare.md").read_text()
    assert "| `median` | " in text
    assert "1 of 4 hospitals attack; seed 1." in text
    assert "**as they came**, 4 hospitals, seed 1:" in text
    files = sorted((study / "out" / "jobs").glob("*/*.npz"))
    assert len(files) == 2 + 4 + 4
    with np.load(files[0]) as found:
        before = found["scores"]
    kept = files[1].stat().st_mtime_ns
    files[0].unlink()
    # the results are of this folder of pictures, wherever it was copied to
    arguments = ["compare", str(study / "study.yaml"), "--data", str(done / "data"), "--out", str(study / "out")]
    assert main([*arguments, "--workers", "1"]) == 0
    with np.load(files[0]) as found:
        assert (found["scores"] == before).all(), "a federation ends in the same bits each time"
    assert files[1].stat().st_mtime_ns == kept
    for name in ("attacked.svg", "cuts.svg"):
        ElementTree.parse(study / "out" / name)


def test_folders_are_asked_for_by_name(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(study / "study.yaml"), "--out", str(study / "out")]) == 2
    assert "--data: is required" in capsys.readouterr().err
    assert run(study, "--part", "none") == 2
    assert not (study / "out" / "jobs").exists()
    assert "expected one of attacked, cuts" in capsys.readouterr().err
