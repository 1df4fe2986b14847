"""Tensors that a hospital keeps from round to round of a stage: they never leave it, in files that only its user may read.

Each round's tensors are a file of their own, so that a round that is repeated starts from those that it started from before.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import ClassVar

from cxrbase_model.codec import CodecError, parts
from cxrbase_model.files import private_folder, remove_abandoned, write_private
from cxrbase_model.messages import Task
from cxrbase_model.state import State
from cxrbase_model.stored import load

_ROUNDS_KEPT = 2  # the last one, and the one before it in case the last is repeated


class Kept:
    """The tensors of the stage that a task belongs to, in a folder for their sort."""

    stages_kept: ClassVar[int] = 4  # of runs that were interrupted by others
    durable: ClassVar[bool] = True  # whether a power cut must not cost them

    def __init__(self, folder: Path, task: Task) -> None:
        key = hashlib.sha256(f"{task.run}\n{task.plan_digest}\n{task.stage}".encode()).hexdigest()[:16]
        self._top, self._round = folder, task.stage_round
        self._folder = self._top / key

    def before(self) -> State | None:
        """The tensors of the last round before this one; None in the first round of a stage, or where there are none."""
        if self._round == 1:
            shutil.rmtree(self._folder, ignore_errors=True)  # what an earlier run of the same plan left
        earlier = [number for number in self._rounds() if number < self._round]
        return self._of(max(earlier)) if earlier else None

    def keep(self, tensors: State) -> None:
        """Write this round's tensors, if any, and remove those that no round can ask for again; OSError on a full disk."""
        if not tensors:
            return
        private_folder(self._top)
        private_folder(self._folder)
        for folder in (self._top, self._folder):  # first, for there may be no room for more
            remove_abandoned(folder)
        write_private(self._file(self._round), *parts(tensors), durable=self.durable)
        for number in self._rounds():
            if self._is_over(number):
                self._file(number).unlink(missing_ok=True)
        others = [each for each in self._top.iterdir() if each.is_dir() and each != self._folder]
        others.sort(key=_age)
        for stage in others[self.stages_kept - 1 :]:  # not by age alone: the clock may have been ahead
            shutil.rmtree(stage, ignore_errors=True)

    def _of(self, number: int) -> State | None:
        """The tensors of a round; None where they are not there. A disk that loses files costs the tensors, not the round."""
        try:
            return load(self._file(number))
        except (OSError, CodecError):
            return None

    def _is_over(self, number: int) -> bool:
        """Whether no round can ask for the tensors of that one again, once this round's are there."""
        return number > self._round or number <= self._round - _ROUNDS_KEPT

    def drop(self) -> None:
        """Remove the tensors of the stage."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal())


def forget_kept(folder: Path) -> None:
    """Remove the tensors of one sort: they were computed from pictures that may have to be forgotten."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _age(folder: Path) -> float:
    try:
        return -folder.stat().st_mtime
    except FileNotFoundError:  # another run has just removed it
        return 0.0
