"""What rounding has left out of an update stays in the hospital and is added to its next one (Seide et al. 2014; Karimireddy et al. 2019,
arXiv 1901.09847), so that a coarse update loses nothing over many rounds.

An update that the server did not take in - it was rejected, or came too late - is no part of that: neither is what it left out owed,
nor is what it was to pay off paid. So a task says in which round the hospital's reply was last taken in, and what was owed then counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from client.kept import Kept, forget_kept
from cxrbase_model.codec import encode, encode_and_leave
from cxrbase_model.messages import Task
from cxrbase_model.state import State, is_finite
from cxrbase_model.transport import Packing

FOLDER = "residual"


class Residual(Kept):
    """What earlier rounds of a task's stage have left out, below the hospital's private folder."""

    durable: ClassVar[bool] = (
        False  # what a power cut takes is a rounding error; waiting for the disk takes seconds a round
    )

    def __init__(self, private: Path, task: Task) -> None:
        super().__init__(private / FOLDER, task)
        self._taken_in = task.control_round

    def before(self) -> State | None:
        """What was owed after the last round whose update the server took in; None where nothing."""
        if self._round == 1:
            self.drop()  # what an earlier run of the same plan left
        return self._of(self._taken_in) if 0 < self._taken_in < self._round else None

    def _is_over(self, number: int) -> bool:
        return number not in (self._taken_in, self._round)

    def encode(self, update: State, packing: Packing) -> bytes:
        """An update, and what is owed from earlier ones, as a plan has it packed; what that leaves out is kept. OSError on a full disk.

        The memory of `update` is used for that: its numbers are others afterwards.
        """
        if packing.is_exact:
            return encode(update, packing)
        owed = self.before()
        for name, tensor in update.items():
            update[name] = tensor.contiguous()
            if owed is not None:
                update[name] += owed.pop(name)
        packed = encode_and_leave(update, packing)
        if is_finite(update):  # else the server rejects the update, and later ones shall not suffer
            self.keep(update)
        return packed


def forget_residuals(private: Path) -> None:
    """Remove all residuals."""
    forget_kept(private / FOLDER)
