"""Tensors that a hospital trains for itself, by the plan's aggregation.keep_local: the shared weights are trained and evaluated with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from client.kept import Kept, forget_kept
from client.policy import Work
from cxrbase_model.messages import Task
from cxrbase_model.plan import EvaluateStage
from cxrbase_model.state import State

FOLDER = "own"


class Own(Kept):
    """The own tensors of the stage that a task belongs to, below the hospital's private folder."""

    stages_kept: ClassVar[int] = 64  # all of a run: an evaluation at its end needs those of every model

    def __init__(self, private: Path, task: Task) -> None:
        super().__init__(private / FOLDER, task)


class OwnTensors:
    """The weights of a task with the hospital's own tensors in them, and its update without."""

    def __init__(self, private: Path, task: Task, work: Work) -> None:
        self._private, self._task, self._work = private, task, work

    def overlay(self) -> State:
        """The weights that arrived, with the own tensors in place of theirs; a new stage begins with those of the one it starts from."""
        state = self._work.state
        if not self._work.plan.aggregation.keep_local:
            return state
        own = self._last() or {}
        fitting = {name: each for name, each in own.items() if name in state and each.shape == state[name].shape}
        return {**state, **fitting}

    def split(self, trained: Mapping[str, Tensor], update: State) -> State:
        """Keep the own ones of the trained tensors; returns the update that may leave, zero where they are. OSError on a full disk."""
        own = {name: tensor for name, tensor in trained.items() if self._work.plan.aggregation.is_local(name)}
        Own(self._private, self._task).keep(own)
        return {**update, **{name: torch.zeros_like(update[name]) for name in own}}

    def _last(self) -> State | None:
        """Those of the stage's last round; failing that, the last ones of the stage that it starts from, and so on."""
        plan, stage = self._work.plan, self._work.model_stage
        is_trained = not isinstance(self._work.stage, EvaluateStage)
        found = Own(self._private, self._task).before() if is_trained else self._of(stage.name)
        while found is None and (source := plan.source(stage)) is not None:
            found, earlier = self._of(source), plan.stage(source)
            assert not isinstance(earlier, EvaluateStage)  # nothing starts from one
            stage = earlier
        return found

    def _of(self, stage: str) -> State | None:
        after_all = 1 + max(each.rounds for each in self._work.plan.stages if not isinstance(each, EvaluateStage))
        return Own(self._private, replace(self._task, stage=stage, stage_round=after_all)).before()


def forget_own(private: Path) -> None:
    """Remove all own tensors."""
    forget_kept(private / FOLDER)
