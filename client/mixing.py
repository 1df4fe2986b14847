"""FedEMA (Zhuang et al. 2022, arXiv 2204.04385): a hospital's encoder begins a round between the global one and its own of the round before.

The global encoder counts by `strength` times the distance of the two, at most wholly: a hospital that has gone far from the others comes
back to them, one that is near keeps what it knows of its own pictures. The mean of all updates still moves the global encoder. The
paper mixes the predictor too; an autoencoder has none, and its decoder comes from the server.
"""

from __future__ import annotations

from pathlib import Path

from client.kept import Kept, forget_kept
from cxrbase_model.messages import Task
from cxrbase_model.state import State, mismatch, norm, subtract, with_prefix

FOLDER = "mixing"

_PART = "encoder."


class Mixing(Kept):
    """The hospital's encoder of the last round of a task's stage, below its private folder; nothing is kept where strength is 0."""

    def __init__(self, private: Path, task: Task, strength: float) -> None:
        super().__init__(private / FOLDER, task)
        self._strength = strength

    def begin(self, state: State) -> State:
        """What a round is trained from: the weights `state` that arrived, the own encoder mixed into theirs where there is one."""
        own = self.before() if self._strength else None
        arrived = with_prefix(state, _PART)
        if own is None or mismatch(own, arrived):
            return state
        share = min(1.0, self._strength * norm(subtract(arrived, own)))
        return state | {name: share * arrived[name] + (1 - share) * own[name] for name in own}

    def end(self, trained: State) -> None:
        """Keep the encoder of the trained weights for the next round; OSError on a full disk."""
        if self._strength:
            self.keep(with_prefix(trained, _PART))


def forget_mixing(private: Path) -> None:
    """Remove all encoders that were kept."""
    forget_kept(private / FOLDER)
