"""SCAFFOLD's control variate of a hospital (aggregation.scaffold): kept here from round to round of a stage; what leaves is how it changed.

The server's variate is the mean of the hospitals' only while both sides mean the same ones. So a task says in which round the hospital's reply was last taken
in (`control_round`), and the variate of that round is the one to go on from: one whose reply was lost, late or rejected is forgotten. Where the hospital has lost
it (a patient was forgotten), it says so, and all begin again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from client.kept import Kept, forget_kept
from client.policy import Refused
from cxrbase_model.aggregation import Aggregation
from cxrbase_model.messages import Code, Task
from cxrbase_model.state import State, mismatch, subtract
from cxrbase_model.variates import controlled, prefixed

FOLDER = "variates"


class Variates(Kept):
    """The hospital's variates of a task's stage, below its private folder; does nothing where the plan has no SCAFFOLD.

    going_on_from: the round whose variate what leaves is a change of; 0 for a newcomer's, or one that was lost.
    """

    durable: ClassVar[bool] = (
        False  # a power cut costs all a round of beginning anew, waiting for the disk seconds in each
    )

    def __init__(self, private: Path, task: Task, arrived: Mapping[str, Tensor]) -> None:
        super().__init__(private / FOLDER, task)
        self._arrived, self._taken_in = arrived, task.control_round
        self._before: State | None = None
        self._change: State = {}
        self.going_on_from = 0

    def correction(self, model: nn.Module, aggregation: Aggregation) -> State | None:
        """What a training adds to its gradients, None where nothing; tell `learned` what it taught. Refused where what arrived does not
        fit the model.
        """
        if not aggregation.scaffold:
            return None
        nothing = controlled(model, aggregation)
        if mismatch(self._arrived, nothing):
            raise Refused(Code.STATE_INVALID)
        self._before = self._own(nothing)
        return nothing if self._before is None else subtract(self._arrived, self._before)

    def learned(self, after: State) -> None:
        """Keep the mean gradient along the training's path (`cxrbase_model.variates.Path.mean`): the hospital's variate from now on."""
        self._change = after if self._before is None else subtract(after, self._before)
        self.keep(after)

    def leaving(self) -> State:
        """What goes with the update: the change of the hospital's variate, by the names that it travels by."""
        return prefixed(self._change)

    def _own(self, nothing: State) -> State | None:
        """The variate that the server has of this hospital; None for a newcomer, and where it was lost."""
        if self._round == 1:
            self.drop()  # what an earlier run of the same plan left
        if not 0 < self._taken_in < self._round:
            return None
        found = self._of(self._taken_in)
        if found is None or mismatch(found, nothing):
            return None
        self.going_on_from = self._taken_in
        return found

    def _is_over(self, number: int) -> bool:
        return number not in (self._taken_in, self._round)


def forget_variates(private: Path) -> None:
    """Remove all variates."""
    forget_kept(private / FOLDER)
