"""`cxrbase-sim audit` from a configuration to its report, on phantoms and on folders of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cxrbase_model.plan import FinetuneStage
from cxrbase_model.settings import SettingsError
from sim.audit.config import read_audit
from sim.cli import EXIT_OK, EXIT_USAGE, main

PLAN: dict[str, Any] = {
    "schema": 1, "name": "tiny <plan>",
    "data": {"findings": ["Cardiomegaly", "Nodule"], "image_size": 32},
    "model": {"encoder": "vit_micro", "depth": 1, "patch_size": 16},
    "stages": [
        {"kind": "finetune", "name": "detect", "init": "random", "batch_size": 8, "positive_weight": 1.0, "optimizer": {"lr": 0.02}}
    ],
}  # fmt: skip
AUDIT: dict[str, Any] = {
    "plan": "plan.yaml",
    "canaries": {"count": 12, "others": 4, "rounds": 2, "gradients": 32},
    "shadows": {"models": 4, "pictures": 12, "rounds": 1},
    "inversion": {
        "effort": {"restarts": 1, "steps": 10, "hops": 1, "matching": 5},
        "views": [
            {"name": "one"},
            {"name": "two of them", "hospitals": 2, "noise": 1.0},
            {"name": "signs, twice", "sees": "update", "steps": 2},
        ],
    },
}


def write(folder: Path, plan: dict[str, Any], audit: dict[str, Any]) -> Path:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    return folder / "audit.yaml"


def test_an_audit_writes_its_report_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(tmp_path, PLAN, AUDIT), tmp_path / "out"
    assert main(["audit", str(file), "--out", str(out)]) == EXIT_OK
    content = json.loads((out / "audit.json").read_text())
    none, private = content["trainings"]
    assert set(private["attacks"]) == {"gradients", "updates", "model", "shadows", "loss"}
    assert set(none["attacks"]) == {"updates", "model", "shadows", "loss"}
    assert private["attacks"]["gradients"]["bound"]["epsilon"] < private["upper"]
    assert [view["name"] for view in content["views"]] == ["one", "two of them", "signs, twice"]
    page = (out / "report.html").read_text()
    assert "tiny &lt;plan&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "the page fetches nothing"
    assert page.count("data:image/png;base64") == 2 * (1 + 2 + 2)
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.size[0] > 100
    assert (out / "parts").stat().st_mode & 0o077 == 0, "recovered pictures are the owner's alone"
    for name in ("report.html", "pictures.png", "audit.json"):
        assert (out / name).stat().st_mode & 0o077 == 0
    parts = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    (out / "parts" / "view-one.json").unlink()
    capsys.readouterr()
    assert main(["audit", str(file), "--out", str(out)]) == EXIT_OK
    again = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert {name for name in parts if parts[name] != again[name]} == {"view-one.json", "view-one.npz"}
    repeated = json.loads((out / "audit.json").read_text())
    for view in (content["views"][0], repeated["views"][0]):
        del view["seconds"]
    assert repeated == content
    assert "reconstruction" in capsys.readouterr().out


def test_another_audit_does_not_mix_with_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "audit.digest").write_text("0" * 64)
    assert main(["audit", str(write(tmp_path, PLAN, AUDIT)), "--out", str(out)]) == EXIT_USAGE
    assert "holds another audit's results" in capsys.readouterr().err


def test_folders_of_real_pictures_are_audited(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for hospital in ("east", "west"):
        images = tmp_path / "data" / hospital / "images"
        images.mkdir(parents=True)
        lines = ["image,patient_id,findings"]
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (160, 160), dtype=np.uint8)).save(images / f"{number}.png")
            lines.append(f"images/{number}.png,p{number},{'Nodule' if number % 2 else 'No Finding'}")
        (images.parent / "labels.csv").write_text("\n".join(lines))
    small = {
        "plan": "plan.yaml", "hospitals": {"kind": "folders"}, "noise": [2.0],
        "canaries": {"count": 8, "others": 2, "rounds": 1, "gradients": 16}, "shadows": {"models": 0},
        "inversion": {"views": []},
    }  # fmt: skip
    file = write(tmp_path, PLAN, small)
    arguments = ["audit", str(file), "--out", str(tmp_path / "out")]
    assert main(arguments) == EXIT_USAGE, "which pictures?"
    assert main([*arguments[:2], "--data", str(tmp_path / "data"), "--out", str(tmp_path / "real")]) == EXIT_OK
    content = json.loads((tmp_path / "real" / "audit.json").read_text())
    assert content["pictures"] == 10
    assert [each["noise"] for each in content["trainings"]] == [0.0, 2.0]
    text = (tmp_path / "real" / "audit.json").read_text() + (tmp_path / "real" / "report.html").read_text()
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"stage": "other"},
            r"stage: expected a fine-tuning or pretraining stage of tiny <plan> \(detect\), found 'other'",
        ),
        ({"shadows": {"models": 3}}, r"shadows\.models: expected 0 or an even number of at least 4, found 3"),
        ({"noise": [0.0]}, r"noise.*: expected 0\.1 to 1000\.0, found 0\.0"),
        ({"inversion": {"views": [{"name": "a"}, {"name": "a"}]}}, r"inversion\.views: expected each name once"),
        (
            {"inversion": {"views": [{"name": "a", "steps": 2}]}},
            r"views\[0\]\.steps: expected 1 where sees is gradient, found 2",
        ),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        read_audit(write(tmp_path, PLAN, AUDIT | change))


def test_what_would_blur_an_audit_is_left_out_of_its_stage(tmp_path: Path) -> None:
    _, subject = read_audit(write(tmp_path, PLAN, AUDIT))
    plan, stage = subject.plan, subject.stage
    assert isinstance(stage, FinetuneStage)
    assert (stage.drop_path, stage.positive_weight, stage.augmentation.rotation) == (0.0, 1.0, 0.0)
    assert len(plan.stages) == 1


@pytest.mark.parametrize("name", ["audit", "audit-folders", "audit-pretrain"])
def test_the_audits_that_come_with_it_are_sound(name: str) -> None:
    config, subject = read_audit(Path(__file__).parents[2] / "configs" / "sim" / f"{name}.yaml")
    assert subject.plan.privacy is not None
    assert config.inversion.views
