"""Local checkpoints: training that was interrupted within a round goes on from its last one, to the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cxrbase_model.codec import CodecError, pack, unpack
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.optim import load_moments, moments_of
from cxrbase_model.state import State, load_state, state_of

_IDENTITY = "identity"


@dataclass
class Tally:
    """What training did so far; `total` is the sum of the losses of all examples, float64, on the device, where it can wait."""

    total: Tensor
    examples: int = 0
    steps: int = 0


class LocalCheckpoint:
    """One file that its owner alone may read, there whole or not at all, written every `seconds` of training.

    It knows which training it belongs to, so one file serves all rounds: another training's is not read.
    """

    def __init__(self, path: Path, seconds: float = 300.0) -> None:
        self._path, self._seconds = path, seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last one is older than `seconds`."""
        return time.monotonic() - self._last >= self._seconds

    def write(self, identity: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file; `identity` is a digest of everything that the training depends on. OSError on a full disk."""
        private_folder(self._path.parent)
        write_private(self._path, pack({**tensors, _IDENTITY: _as_tensor(identity)}))
        self._last = time.monotonic()

    def read(self, identity: str) -> State | None:
        """The tensors of this training's last checkpoint; None where there is none, or it cannot be read."""
        try:
            found = unpack(self._path.read_bytes())
        except (OSError, CodecError):
            return None
        own = found.pop(_IDENTITY, None)
        return found if own is not None and torch.equal(own, _as_tensor(identity)) else None

    def remove(self) -> None:
        """The training is done, or its pictures have to be forgotten."""
        self._path.unlink(missing_ok=True)


class Saver:
    """All that a training's next step depends on, to and from its local checkpoint; does nothing where that is None.

    identity: says which training this is, and is only asked for where there is a checkpoint. Of several processes that train
    together all read, and the one that is `writer` writes.
    """

    def __init__(
        self, checkpoint: LocalCheckpoint | None, identity: Callable[[], str], model: nn.Module,
        optimizer: torch.optim.Optimizer, generators: Mapping[str, torch.Generator], tally: Tally, *, writer: bool = True,
    ) -> None:  # fmt: skip
        self._checkpoint, self._writer = checkpoint, writer
        self._identity = identity() if checkpoint else ""
        self._model, self._optimizer, self._generators, self._tally = model, optimizer, generators, tally

    def restore(self) -> None:
        """Go on where this training was interrupted, if it was."""
        found = self._checkpoint.read(self._identity) if self._checkpoint else None
        if found is None:
            return
        load_state(self._model, _part(found, "model."))
        load_moments(self._model, self._optimizer, _part(found, "moments."))
        for name, generator in self._generators.items():
            generator.set_state(found[f"generator.{name}"])
        self._tally.total.copy_(found["total"])
        self._tally.examples, self._tally.steps = (int(number) for number in found["counts"])

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough; waits for the device then."""
        if self._checkpoint is None or not self._writer or not self._checkpoint.is_due():
            return
        tensors = {f"model.{name}": tensor for name, tensor in state_of(self._model).items()}
        tensors |= {f"moments.{name}": tensor for name, tensor in moments_of(self._model, self._optimizer).items()}
        tensors |= {f"generator.{name}": generator.get_state() for name, generator in self._generators.items()}
        tensors |= {"total": self._tally.total.cpu(), "counts": torch.tensor([self._tally.examples, self._tally.steps])}
        self._checkpoint.write(self._identity, tensors)

    def remove(self) -> None:
        """The training is done."""
        if self._checkpoint is not None and self._writer:
            self._checkpoint.remove()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
