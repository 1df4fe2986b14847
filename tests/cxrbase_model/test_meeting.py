"""The folder of a meeting goes with its owner; what a killed owner has left goes when the next one comes, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxrbase_model.meeting import meeting_file


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those it starts."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def left_by_a_killed_owner(shared: Path) -> Path:
    code = (
        "import os, signal; from cxrbase_model.meeting import meeting_file\n"
        "with meeting_file() as file: file.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    before = set(shared.iterdir())
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    (folder,) = set(shared.iterdir()) - before
    return folder


def grow_old(folder: Path) -> None:
    os.utime(folder, (time.time() - 3600,) * 2)


def test_the_folder_is_its_owners_alone_and_goes_at_the_end(shared: Path) -> None:
    with meeting_file() as file:
        assert file.parent.parent == shared
        assert file.parent.stat().st_mode & 0o077 == 0
        file.touch()
    assert list(shared.iterdir()) == []


def test_what_a_killed_owner_has_left_goes_when_the_next_one_comes(shared: Path) -> None:
    left = left_by_a_killed_owner(shared)
    with meeting_file():
        assert left.exists(), "it may be one that is just being made"
    grow_old(left)
    with meeting_file():
        assert not left.exists()


def test_a_folder_whose_owner_lives_stays_however_old_it_is(shared: Path) -> None:
    with meeting_file() as file:
        file.touch()
        grow_old(file.parent)
        with meeting_file():
            assert file.exists()


def test_what_is_no_meeting_is_not_touched(shared: Path) -> None:
    left, other = left_by_a_killed_owner(shared), shared / "cxrbase-data"
    other.mkdir()
    (left / "more").touch()
    (shared / "cxrbase-meeting-link").symlink_to(other)
    for folder in (left, other):
        grow_old(folder)
    with meeting_file():
        assert (left / "more").exists()
        assert other.exists()
