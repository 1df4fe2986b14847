"""Numbers as whole steps modulo 2^16 or 2^32: there sums are exact, and a uniform mask hides a number completely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.plan import Plan
from cxrbase_model.protection import TAILS
from cxrbase_model.state import State, size

Residues = NDArray[np.unsignedinteger]  # [N]: elements of the ring
Buffer = bytes | bytearray | memoryview

TAIL = (
    3  # numbers before the update's: share of the weight, that times the loss, and whether the update was short enough
)
LOSS_SPAN = 8.0  # losses beyond it count as it
_PIECE = 1 << 17  # numbers worked on at a time: they stay in the processor's cache
_SLACK = 1 + 1e-6  # of a bound on a sum, for its rounding
_TAIL_BITS = 32  # weights shall not be rounded as coarsely as an update may


class RingError(ValueError):
    """A number is not finite or beyond the ring's span, residues are of another length than the model's, or a sum cannot be one."""


@dataclass(frozen=True)
class Ring:
    """The ring of `bits` in which the sum of `parties` numbers of magnitude at most `span` cannot wrap.

    A number is rounded to the nearest of its steps of 1/scale, so a sum of n numbers is wrong by at most n / (2 scale), which is
    n x span x parties / (2^bits - 2 - 2 parties) or less.
    """

    bits: int
    span: float
    parties: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of residues: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def scale(self) -> float:
        """Steps of a unit."""
        return float((2 ** (self.bits - 1) - 1) // self.parties) / self.span

    def encode(self, numbers: NDArray[np.floating], factor: float = 1.0, out: Residues | None = None) -> Residues:
        """The residues of numbers [N] times a factor of 0 to 1; RingError where a number itself is beyond the span."""
        residues = np.empty(len(numbers), self.dtype) if out is None else out
        signed = residues.view(f"<i{self.bits // 8}")
        steps = np.empty(min(_PIECE, len(numbers)), np.float64)
        scale = np.float64(self.scale * factor)
        for start in range(0, len(numbers), _PIECE):
            piece = numbers[start : start + _PIECE]
            largest = max(float(piece.max()), -float(piece.min()))  # NaN where one number is
            if not largest <= self.span:
                raise RingError(f"update: expected numbers of magnitude at most {self.span:g}, found {largest:g}")
            product = np.multiply(piece, scale, out=steps[: len(piece)])
            signed[start : start + len(piece)] = np.rint(product, out=product)
        return residues

    def decode(self, residues: Residues) -> NDArray[np.float64]:
        """The numbers [N], or sums of them, that residues stand for."""
        return np.asarray(residues.view(f"<i{self.bits // 8}") / self.scale)


@dataclass(frozen=True)
class Vector:
    """What a hospital masks: the numbers of its update in one ring, after a tail of a few numbers in another."""

    tail: Residues  # [TAIL]
    body: Residues  # [N]: the update's tensors in name order

    def parts(self) -> Iterator[Residues]:
        """Both, in the order in which they travel and take up a keystream."""
        yield self.tail
        yield self.body

    def add(self, other: Vector) -> None:
        """Add another in place."""
        for own, added in zip(self.parts(), other.parts(), strict=True):
            np.add(own, added, out=own)


@dataclass(frozen=True)
class Rings:
    """What the numbers of a round are encoded in."""

    tail: Ring
    body: Ring

    def zeros(self, count: int) -> Vector:
        """The vector of nothing, for updates of `count` numbers."""
        return self.vector(bytearray(self.size(count)), count)

    def size(self, count: int) -> int:
        """Bytes of a vector for updates of `count` numbers."""
        return TAIL * self.tail.dtype.itemsize + count * self.body.dtype.itemsize

    def vector(self, data: Buffer, count: int) -> Vector:
        """The vector of bytes, without a copy; RingError where they are too many or too few for `count` numbers."""
        if len(data) != self.size(count):
            raise RingError(f"residues: expected {self.size(count)} bytes, found {len(data)}")
        start = TAIL * self.tail.dtype.itemsize
        return Vector(
            np.frombuffer(data, self.tail.dtype, TAIL), np.frombuffer(data, self.body.dtype, count, offset=start)
        )

    def encode(self, update: Mapping[str, Tensor], share: float, loss: float, short: float = 0.0) -> bytearray:
        """The vector of a float32 update with its share of the largest weight, 0 to 1, as it travels; RingError where a number is
        beyond the span.

        loss: mean of the local training, counted as at most LOSS_SPAN. short: 1 where the update was not clipped, noised where
        the plan says so; 0 where nobody asks.
        """
        bounded = min(max(loss, -LOSS_SPAN), LOSS_SPAN) / LOSS_SPAN
        count = size(update)
        data = bytearray(self.size(count))
        vector = self.vector(data, count)
        vector.tail[:] = self.tail.encode(np.array([share, share * bounded, short]))
        start = 0
        for name in sorted(update):
            numbers = update[name].contiguous().view(-1).numpy()
            self.body.encode(numbers, share, vector.body[start : start + len(numbers)])
            start += len(numbers)
        return data

    def totals(self, vector: Vector) -> tuple[float, float, float]:
        """The sum of the shares of weight, the mean loss, and the count of short updates."""
        share, loss, short = (float(each) for each in self.tail.decode(vector.tail))
        return share, LOSS_SPAN * loss / share if share > 0 else float("nan"), short

    def mean(self, vector: Vector, like: Mapping[str, Tensor], share: float, divisor: float) -> State:
        """The sum over a divisor, float32; RingError where no updates within the span have it whose weights sum up to `share`."""
        state: State = {}
        most, start = share * self.body.span * _SLACK + self.body.parties / self.body.scale, 0
        for name in sorted(like):
            state[name] = like[name].new_empty(like[name].shape)
            flat = state[name].view(-1).numpy()
            for at in range(0, len(flat), _PIECE):
                part = flat[at : at + _PIECE]
                sums = self.body.decode(vector.body[start + at : start + at + len(part)])
                if max(float(sums.max()), -float(sums.min())) > most:
                    raise RingError(f"sum: expected at most {most:g}, found more")
                part[:] = sums / divisor
            start += len(flat)
        return state


def rings_of(plan: Plan, clip: float | None) -> Rings:
    """The rings of a plan whose updates are clipped to the norm `clip`; under privacy the spans follow from clip and noise.

    ValueError where the plan has no aggregation.secure.
    """
    secure, privacy, quorum = plan.aggregation.secure, plan.aggregation.privacy, plan.federation.quorum
    if secure is None:
        raise ValueError("aggregation.secure: expected it to be set, found none")
    span, tail_span = secure.span, 1.0
    if privacy is not None and clip is not None:
        span = clip * (1 + TAILS * privacy.share(quorum))
        tail_span += TAILS * privacy.count_share(quorum)
    return Rings(Ring(_TAIL_BITS, tail_span, secure.hospitals), Ring(secure.bits, span, secure.hospitals))
