"""Numbers as whole steps modulo 2^16 or 2^32: there sums are exact, and a uniform mask hides a number completely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.plan import Plan
from cxrbase_model.protection import Secure
from cxrbase_model.state import State

Residues = NDArray[np.unsignedinteger]  # [N]: elements of the ring

TAIL = 3  # numbers behind the update's: share of the weight, weight times loss, and whether the update was short enough
LOSS_SPAN = 8.0  # losses beyond it count as it
_PIECE = 1 << 18  # numbers encoded at a time: they stay in the processor's cache
_TAILS = 9  # standard deviations of noise that the span has room for; a draw beyond is refused, once in 10^18
_TYPES = {16: np.dtype("<u2"), 32: np.dtype("<u4")}


class RingError(ValueError):
    """A number is not finite or beyond the ring's span, or residues are of another length than the model's."""


@dataclass(frozen=True)
class Ring:
    """The ring of `bits` in which the sum of `parties` numbers of magnitude at most `span` cannot wrap.

    A number is rounded to the nearest of its steps of 1/scale, so a sum of n numbers is wrong by at most n / (2 scale), which is
    n x span x parties / (2^bits - 2 parties) or less.
    """

    bits: int
    span: float
    parties: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of residues: unsigned, little-endian."""
        return _TYPES[self.bits]

    @property
    def scale(self) -> float:
        """Steps of a unit."""
        return ((2 ** (self.bits - 1) - 1) // self.parties) / self.span

    def encode(self, numbers: NDArray[np.floating]) -> Residues:
        """The residues of numbers [N]; RingError where one is beyond the span."""
        residues = np.empty(len(numbers), self.dtype)
        for start in range(0, len(numbers), _PIECE):
            piece = numbers[start : start + _PIECE]
            largest = max(float(piece.max()), -float(piece.min()))  # NaN where one is, whichever of both finds it
            if not largest <= self.span:
                raise RingError(f"update: expected numbers of magnitude at most {self.span:g}, found {largest:g}")
            steps = np.rint(piece * np.float64(self.scale))
            residues[start : start + len(piece)] = steps.astype(f"<i{self.bits // 8}").view(self.dtype)
        return residues

    def decode(self, residues: Residues) -> NDArray[np.float64]:
        """The numbers [N], or sums of them, that residues stand for."""
        return np.asarray(residues.view(f"<i{self.bits // 8}") / self.scale)


def ring_of(plan: Plan, clip: float | None) -> Ring:
    """The ring of a plan whose updates are clipped to the norm `clip`; under privacy its span follows from clip and noise."""
    secure, privacy = _secure(plan), plan.aggregation.privacy
    if privacy is None or clip is None:
        return Ring(secure.bits, secure.span, secure.hospitals)
    return Ring(secure.bits, clip * (1 + _TAILS * privacy.share(plan.federation.quorum)), secure.hospitals)


def tail_ring(plan: Plan) -> Ring:
    """The ring of the numbers behind the update."""
    secure, privacy = _secure(plan), plan.aggregation.privacy
    noise = 0.0 if privacy is None else privacy.count_share(plan.federation.quorum)
    return Ring(secure.bits, 1 + _TAILS * noise, secure.hospitals)


def _secure(plan: Plan) -> Secure:
    if plan.aggregation.secure is None:
        raise ValueError("aggregation.secure: expected it to be set, found none")
    return plan.aggregation.secure


def flat_residues(ring: Ring, update: Mapping[str, Tensor], weight: float) -> Residues:
    """An update's residues [N + TAIL], its tensors in name order, each number times `weight`, 0 to 1; the tail is zero."""
    total = sum(tensor.numel() for tensor in update.values())
    residues = np.zeros(total + TAIL, ring.dtype)
    start = 0
    for name in sorted(update):
        numbers = update[name].contiguous().view(-1).numpy()
        encoded = ring.encode(numbers if weight == 1 else numbers.astype(np.float64) * weight)
        residues[start : start + len(encoded)] = encoded
        start += len(encoded)
    return residues


def shaped(ring: Ring, residues: Residues, like: Mapping[str, Tensor], divisor: float) -> State:
    """The update, float32, that the sum of `flat_residues` makes over a divisor; RingError where lengths differ."""
    total = sum(tensor.numel() for tensor in like.values())
    if len(residues) != total + TAIL:
        raise RingError(f"residues: expected {total + TAIL} numbers, found {len(residues)}")
    state: State = {}
    start = 0
    for name in sorted(like):
        state[name] = like[name].new_empty(like[name].shape)
        flat = state[name].view(-1).numpy()
        for piece in range(0, len(flat), _PIECE):
            part = flat[piece : piece + _PIECE]
            part[:] = ring.decode(residues[start + piece : start + piece + len(part)]) / divisor
        start += len(flat)
    return state


def from_bytes(ring: Ring, data: bytes, count: int) -> Residues:
    """The `count` residues of bytes; RingError where there are more or fewer."""
    if len(data) != count * ring.dtype.itemsize:
        raise RingError(f"residues: expected {count * ring.dtype.itemsize} bytes, found {len(data)}")
    return np.frombuffer(data, ring.dtype)
