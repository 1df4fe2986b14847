"""AdamW's moments between the rounds of a stage, and beside them the local checkpoint of a round that was interrupted."""

from __future__ import annotations

from pathlib import Path

from client.kept import Kept, forget_kept
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.messages import Task

FOLDER = "optimizer"

_INTERRUPTED = "interrupted.safetensors"  # one for all stages: it knows which training it belongs to


class Moments(Kept):
    """The moments of the stage that a task belongs to, below the hospital's private folder."""

    def __init__(self, private: Path, task: Task) -> None:
        super().__init__(private / FOLDER, task)
        self.interrupted = LocalCheckpoint(private / FOLDER / _INTERRUPTED)


def forget_moments(private: Path) -> None:
    """Remove all moments and local checkpoints."""
    forget_kept(private / FOLDER)
