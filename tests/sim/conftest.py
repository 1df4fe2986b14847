"""One thread for small models, and comparisons that several files of tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.sim.compared import run, write_study


@contextmanager
def one_thread() -> Iterator[None]:
    """So small models are slower with more, and much slower where other work holds the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that was not run."""
    return write_study(tmp_path)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run, and is not changed by a test."""
    folder = write_study(tmp_path_factory.mktemp("study"))
    with one_thread():
        assert run(folder) == 0
    return folder
