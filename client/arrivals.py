"""The weights that arrived last, kept so that the next ones can come as a difference: one file that only the hospital's user may read.

They are the consortium's weights as everybody gets them; nothing of this hospital's pictures is in them that is not in what the
others hold.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from cxrbase_model.codec import CodecError, decode, packed, parts
from cxrbase_model.difference import Pieces, decode_difference, gathered, scattered, widen
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.messages import Task
from cxrbase_model.state import State, digest
from cxrbase_model.stored import load
from cxrbase_model.transport import Packing, Transport

FOLDER = "held"

log = logging.getLogger("cxrbase.client")


class BaseMissing(Exception):
    """The weights came as a difference to some that are not here, or not as they were; they have to come whole."""


class WrongWeights(Exception):
    """What arrived is not what was sent."""


def arrived(task: Task, transport: Transport, parameters: int, private: Path | None) -> State:
    """The weights of a task, of at most so many parameters; CodecError, WrongWeights or BaseMissing where they cannot be had.

    private: the hospital's private folder, where they are kept for the next round; None to keep nothing and hold nothing.
    """
    held = None if private is None or not transport.differs else HeldWeights(private)
    if held is None:
        if task.base_digest:
            raise BaseMissing
        return _checked(decode(task.state, transport.down(task.kind), parameters), task)
    if (own := held.find(task.state_digest)) is not None:  # asked again, after a crash or for want of a quorum
        with contextlib.suppress(WrongWeights):
            return _checked(_widened(own), task)
    pieces = _unpacked(task, transport.down(task.kind), parameters, held)
    try:
        state = _checked(_widened(pieces), task)
    except WrongWeights:
        raise (BaseMissing if task.base_digest else WrongWeights) from None
    held.keep(task.state_digest, pieces, task.round)
    return state


def _unpacked(task: Task, packing: Packing, parameters: int, held: HeldWeights) -> dict[str, Pieces]:
    if not task.base_digest:
        return gathered(packed(task.state, packing, parameters), [packing.precision])
    base = held.find(task.base_digest)
    if base is None:
        raise BaseMissing
    try:
        return decode_difference(task.state, base, packing.precision, parameters)
    except CodecError:  # the file may be to blame
        raise BaseMissing from None


def _widened(pieces: Mapping[str, Pieces]) -> State:
    return {name: widen(each) for name, each in pieces.items()}


class HeldWeights:
    """The file, below a hospital's private folder. Its name is the digest of the weights."""

    def __init__(self, private: Path) -> None:
        self._folder = private / FOLDER

    def find(self, name: str) -> Mapping[str, Pieces] | None:
        """The packed weights of a digest, None where others are held or none; whether they are whole is for the caller to check."""
        if not name.isalnum():
            return None
        try:
            return gathered(load(self._file(name)))
        except (OSError, CodecError):
            return None

    def keep(self, name: str, pieces: Mapping[str, Pieces], number: int) -> None:
        """Keep packed weights of a round in place of those before; a full disk costs a longer broadcast and not the round."""
        try:
            private_folder(self._folder)
            for path in self._folder.iterdir():
                path.unlink()  # first, for there may be room for one alone
            write_private(
                self._file(name), *parts(scattered(pieces)), durable=False
            )  # a power cut costs a longer broadcast
        except OSError:
            log.exception("round %d: the weights could not be kept; the next ones will come whole", number)

    def drop(self) -> None:
        """Remove what is held."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _checked(state: State, task: Task) -> State:
    if digest(state) != task.state_digest:
        raise WrongWeights
    return state
