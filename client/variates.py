"""SCAFFOLD's control variate of a hospital (aggregation.scaffold): kept here from round to round of a stage; what leaves is how it changed.

The server's variate is the mean of the hospitals' only while both sides mean the same ones. So a task says in which round the hospital's reply was last taken
in (`control_round`), and the variate of that round is the one to go on from: one whose reply was lost, late or rejected is forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from client.kept import Kept, forget_kept
from client.policy import Refused
from cxrbase_model.aggregation import Aggregation
from cxrbase_model.codec import CodecError, unpack
from cxrbase_model.messages import Code, Task
from cxrbase_model.state import State, mismatch, subtract
from cxrbase_model.variates import controlled, prefixed, steered

FOLDER = "variates"


class Variates(Kept):
    """The hospital's variates of a task's stage, below its private folder; does nothing where the task brought no variate of the server."""

    def __init__(self, private: Path, task: Task, arrived: Mapping[str, Tensor]) -> None:
        super().__init__(private / FOLDER, task)
        self._arrived, self._taken_in = arrived, task.control_round
        self._change: State = {}

    @contextlib.contextmanager
    def steering(self, model: nn.Module, aggregation: Aggregation) -> Iterator[None]:
        """Correct the gradients of the training within the block, and keep what it teaches. Refused where what arrived does not fit the model."""
        if not aggregation.scaffold:
            yield
            return
        nothing = controlled(model, aggregation)
        if mismatch(self._arrived, nothing):
            raise Refused(Code.STATE_INVALID)
        own = self._own(nothing)
        with steered(model, subtract(self._arrived, own) if self._taken_in else nothing) as path:
            yield
        after = path.mean()
        self._change = subtract(after, own)
        self.keep(after)

    def leaving(self) -> State:
        """What goes with the update: the change of the hospital's variate, by the names that it travels by."""
        return prefixed(self._change)

    def _own(self, nothing: State) -> State:
        """The variate that the server has of this hospital: zero for a newcomer, and the server's own, which corrects nothing, for one that was lost."""
        if self._round == 1:
            self.drop()  # what an earlier run of the same plan left
        if not self._taken_in:
            return nothing
        try:
            found = unpack(self._file(self._taken_in).read_bytes()) if self._taken_in < self._round else {}
        except (OSError, CodecError):
            found = {}
        return dict(self._arrived) if mismatch(found, nothing) else found

    def _is_over(self, number: int) -> bool:
        return number not in (self._taken_in, self._round)


def forget_variates(private: Path) -> None:
    """Remove all variates."""
    forget_kept(private / FOLDER)
