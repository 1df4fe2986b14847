"""Comparisons that several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.compared import run, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that was not run."""
    return write_study(tmp_path)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run, and is not changed by a test."""
    folder = write_study(tmp_path_factory.mktemp("study"))
    assert run(folder) == 0
    return folder
