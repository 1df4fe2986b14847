"""What the documentation shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_engines_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(compile(code[1], "docs/engine.md", "exec"), names)
    chances = names["chances"]
    assert isinstance(chances, torch.Tensor)
    assert chances.shape == (64, 6)
    assert capsys.readouterr().out.startswith("64 pictures, loss ")
