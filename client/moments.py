"""AdamW's moments between the rounds of a stage."""

from __future__ import annotations

from pathlib import Path

from client.kept import Kept, forget_kept
from cxrbase_model.messages import Task

FOLDER = "optimizer"


class Moments(Kept):
    """The moments of the stage that a task belongs to, below the hospital's private folder."""

    def __init__(self, private: Path, task: Task) -> None:
        super().__init__(private / FOLDER, task)


def forget_moments(private: Path) -> None:
    """Remove all moments."""
    forget_kept(private / FOLDER)
