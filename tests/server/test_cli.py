"""The operator's command line: what it prints, and one clear line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cxrbase_model.plan import read_plan
from server.cli import main
from server.store import RunStore

DEMO = Path(__file__).parents[2] / "configs" / "plans" / "demo.yaml"


def test_a_plan_is_shown_with_its_stages_and_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DEMO)]) == 0
    told = capsys.readouterr().out
    plan = read_plan(DEMO)
    assert plan.digest in told
    assert all(stage.name in told for stage in plan.stages)


def test_a_wrong_plan_is_one_line_that_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "plan.yaml"
    wrong.write_text(DEMO.read_text(encoding="utf-8").replace("quorum: 2", "quorum: many"), encoding="utf-8")
    assert main(["plan", str(wrong)]) == 2
    told = capsys.readouterr().err
    assert "federation.quorum" in told
    assert len(told.splitlines()) == 1


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "report"):
        assert main([command, str(tmp_path)]) == 2
        assert f"{tmp_path}: holds no run" in capsys.readouterr().err


def test_a_run_that_has_only_begun_has_a_status_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunStore.create(tmp_path / "run", read_plan(DEMO))
    assert main(["status", str(tmp_path / "run")]) == 3
    assert "demo: interrupted, 0 of 49 rounds done" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["rounds"] == []


def test_how_a_run_stands_is_told_without_waiting_for_torch_and_flower(tmp_path: Path) -> None:
    RunStore.create(tmp_path, read_plan(DEMO))
    code = "import sys; from server.cli import main; main(sys.argv[1:]); print(*({'torch', 'flwr'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "status", str(tmp_path)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert told.startswith("demo: interrupted")
    assert told.splitlines()[-1] == ""
