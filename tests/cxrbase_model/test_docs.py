"""What the documentation shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(page: str) -> dict[str, object]:
    """Run the Python of a page; the names it leaves."""
    code = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(compile(code[1], page, "exec"), names)
    return names


def test_the_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    features = run("README.md")["features"]
    assert isinstance(features, torch.Tensor)
    assert features.shape == (64, 128)


def test_the_example_of_the_engines_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    chances = run("docs/engine.md")["chances"]
    assert isinstance(chances, torch.Tensor)
    assert chances.shape == (64, 6)
    assert capsys.readouterr().out.startswith("64 pictures, loss ")
