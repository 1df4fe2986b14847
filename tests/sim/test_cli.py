"""cxrbase-sim and cxrbase-model as typed: help, and one line for whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cxrbase_model.cli import main as model_main
from sim.cli import EXIT_OK, EXIT_USAGE, main

DEMO = Path(__file__).parents[2] / "configs"
PLAN = """
schema: 1
name: small
data: {findings: [No Finding], image_size: 32}
stages: [{kind: pretrain, name: mae}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration beside a small plan: `config(text)` gives its path."""

    def make(text: str) -> str:
        (tmp_path / "plan.yaml").write_text(PLAN)
        (tmp_path / "sim.yaml").write_text(text)
        return str(tmp_path / "sim.yaml")

    return make


@pytest.mark.parametrize(
    ("command", "commands"), [(main, ["phantom", "run"]), (model_main, ["info"])], ids=["sim", "model"]
)
def test_the_help_lists_the_commands(
    command: Callable[[list[str]], int], commands: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in commands)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "plan: plan.yaml\nhospitals: {kind: phantom, count: 0}\ndata: d",
            r"hospitals\.count: expected 1 to 1000.*found 0",
        ),
        ("plan: plan.yaml\nhospitals: {kind: real}\ndata: d", r"hospitals\.kind: expected .*phantom.*folders.*'real'"),
        ("plan: plan.yaml\nconcurent: 2", r"concurent"),
        ("plan: other.yaml\ndata: d", r"other\.yaml"),
        ("plan: plan.yaml", r"data: is required here or by --data"),
        ("plan: [", r"sim\.yaml"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_nothing_is_written(
    config: Callable[[str], str], text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", config(text), "--out", str(tmp_path / "run")]) == EXIT_USAGE
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert re.search(line, told.err), told.err
    assert not (tmp_path / "run").exists()


def test_hospitals_are_written_once_and_their_splits_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        arguments = ["phantom", "--hospitals", "1", "--pictures", "20", "--seed", "5", "--out", str(tmp_path / name)]
        assert main(arguments) == EXIT_OK
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    )
    assert first == second
    assert any(path.name == "secret.key" for path in first), "or the split would be another one each time"
    capsys.readouterr()
    assert main(arguments) == EXIT_OK
    assert "holds hospitals already; nothing written" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--hospitals", "0"), ("--pictures", "19")])
def test_a_number_that_is_too_small_is_said(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["phantom", "--out", str(tmp_path / "data"), option, value]) == EXIT_USAGE
    assert f"{option}: expected at least" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_the_model_command_tells_what_a_plan_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_main(["info", str(DEMO / "plans" / "demo.yaml")]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told.keys() == {"encoder", "autoencoder", "message"}
    assert float(told["encoder"].split()[0]) < float(told["autoencoder"].split()[0])


def test_the_model_command_says_what_is_wrong_with_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace("32", "33"))
    assert model_main(["info", str(tmp_path / "plan.yaml")]) == 2
    assert "model.patch_size: expected a divisor of data.image_size 33, found 16" in capsys.readouterr().err
