"""What the hospitals of a round are sent: the difference to the last broadcast, or the whole where one does not hold that.

Both give the same weights to the bit (`cxrbase_model.difference`), so that neither the order of things nor a restart changes a model. What
was sent last is on disk, in a file without a name that ends with the process: after a restart, the first broadcast is whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from flwr.app import Message
from torch import Tensor

from cxrbase_model.codec import encode, memory_of, sent_state
from cxrbase_model.difference import Pieces, encode_difference, narrow, widened
from cxrbase_model.messages import Code, Task, WireError, reply_from_message
from cxrbase_model.state import Digest, State, digest
from cxrbase_model.transport import Packing, Transport
from server.memory import give_back


class Broadcast:
    """The task of one attempt at a round, for each hospital. `state` is what all of them start from, made as it is read."""

    def __init__(self, task: Task, before: State, packing: Packing, difference: bytes, base: str, holders: set[str]):
        self.state = sent_state(before, packing)
        self.asked = task  # without weights
        self.control_rounds: Mapping[str, int] = {}  # by hospital: which round last took in its reply
        self._before, self._packing = before, packing
        self._difference = replace(task, state=difference, base_digest=base)
        self._holders = set(holders)
        self.bytes_sent: dict[str, int] = {}  # by hospital, of this attempt

    def task(self, name: str) -> Task:
        """What a hospital is sent."""
        task = self._difference if name in self._holders else self._whole
        self.bytes_sent[name] = self.bytes_sent.get(name, 0) + len(task.state)
        return replace(task, control_round=self.control_rounds.get(name, 0))

    def instead(self, name: str, message: Message) -> Task | None:
        """The whole, for a hospital that answers that it does not hold what the difference is to; None for any other answer."""
        if name not in self._holders:
            return None
        try:
            code = reply_from_message(message).code
        except WireError:
            return None
        if code is not Code.BASE_MISSING:
            return None
        self._holders.discard(name)
        return self.task(name)

    @cached_property
    def _whole(self) -> Task:
        return replace(self.asked, state=encode(self._before, self._packing))


class Broadcasts:
    """The broadcasts of a run, one after the other; `folder` is the run directory."""

    def __init__(self, folder: Path, transport: Transport) -> None:
        self._folder, self._transport = folder, transport
        self._last: Shelf | None = None
        self._digest = ""
        self._holders: set[str] = set()

    def next(self, task: Task, before: State, names: Iterable[str]) -> Broadcast:
        """The broadcast of weights to hospitals; `task` lacks the weights and their digest."""
        packing = self._transport.down(task.kind)
        if not self._transport.differs:
            task = replace(task, state_digest=digest(sent_state(before, packing)))
            return Broadcast(task, before, packing, b"", "", set())
        holders, base = self._holders & set(names), self._digest
        shelf, whole, difference = Shelf(self._folder), Digest(), b""
        pieces = _kept(before, packing.precision, shelf, whole)
        if holders and self._last is not None:
            difference = encode_difference(pieces, self._last, packing.precision)
        else:
            for _ in pieces:  # kept for the next broadcast
                pass
        self.close()
        give_back()
        task = replace(task, state_digest=whole.hexadecimal())
        self._last, self._digest, self._holders = shelf, task.state_digest, set()
        return Broadcast(task, before, packing, difference, base, holders)

    def close(self) -> None:
        """Let go of what was sent last; the next broadcast is whole."""
        if self._last is not None:
            self._last.close()
        self._last, self._digest, self._holders = None, "", set()

    def held_by(self, names: Iterable[str]) -> None:
        """Note who has answered the last broadcast, and so holds it."""
        self._holders |= set(names)


def _kept(state: Mapping[str, Tensor], precision: str, shelf: Shelf, whole: Digest) -> Iterator[tuple[str, Pieces]]:
    """The tensors of a state as they are packed, put on a shelf, and what they unpack to into a digest."""
    for name in sorted(state):
        pieces = shelf.put(name, narrow(state[name], precision))
        whole.add_parts(name, state[name].shape, widened(pieces))
        yield name, pieces


class Shelf(Mapping[str, Pieces]):
    """Packed tensors in a file without a name."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by `close`
        self._places: dict[str, list[tuple[int, torch.Size, torch.dtype]]] = {}

    def put(self, name: str, pieces: Pieces) -> Pieces:
        """Keep the pieces of a tensor, and hand them on."""
        self._places[name] = []
        for piece in pieces:
            self._places[name].append((self._file.seek(0, 2), piece.shape, piece.dtype))
            self._file.write(memory_of(piece.contiguous().view(-1)))
        return pieces

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __getitem__(self, name: str) -> Pieces:
        """The pieces of a tensor, read from the file; KeyError where there is none of the name."""
        return tuple(self._read(*place) for place in self._places[name])

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._places)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._places)

    def _read(self, start: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self._file.seek(start)
        flat = torch.empty(shape.numel(), dtype=dtype)
        self._file.readinto(memory_of(flat))
        return flat.reshape(shape)
