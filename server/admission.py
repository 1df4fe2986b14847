"""One reply admitted or rejected with a code, before a single number of it reaches the sum."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrbase_model.codec import CodecError, unpack
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.state import State, is_finite, mismatch, norm

MOST_EXAMPLES = 10_000_000  # no hospital shows a model more pictures in a round; a weight beyond it is a lie or a bug


@dataclass(frozen=True)
class Admitted:
    """An update that may be folded in, with its weight and its Euclidean norm."""

    update: State
    examples: int
    norm: float


class Rejected(Exception):
    """A reply that is left out of the round; the code says why."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


def check_reply(reply: Reply, task: Task, answered: Set[str]) -> None:
    """Raise Rejected unless the reply answers this task, and its hospital for the first time."""
    if reply.round != task.round or reply.stage != task.stage or reply.kind != task.kind:
        raise Rejected(Code.ROUND)
    if reply.plan_digest != task.plan_digest:
        raise Rejected(Code.PLAN_DIGEST)
    if reply.site in answered:
        raise Rejected(Code.DUPLICATE)
    if reply.code is not None:
        raise Rejected(reply.code)


def admit_update(reply: Reply, reference: Mapping[str, Tensor], max_norm: float | None) -> Admitted:
    """The update of a reply; Rejected where it does not fit the reference, is not finite or too large."""
    if not 0 < reply.examples <= MOST_EXAMPLES:
        raise Rejected(Code.EXAMPLES)
    try:
        update = unpack(reply.update)
    except CodecError:
        raise Rejected(Code.MALFORMED) from None
    problem = mismatch(update, reference)
    if problem:
        raise Rejected(Code.NAMES if problem == "names" else Code.SHAPES)
    if any(tensor.dtype != torch.float32 for tensor in update.values()):
        raise Rejected(Code.SHAPES)
    if not is_finite(update):
        raise Rejected(Code.NOT_FINITE)
    size = norm(update)
    if max_norm is not None and size > max_norm:
        raise Rejected(Code.NORM)
    return Admitted(update, reply.examples, size)
