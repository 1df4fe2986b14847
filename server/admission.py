"""One reply admitted or rejected with a code, before a single number of it reaches the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cxrbase_model.codec import CodecError
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.opened import Opened, opened
from cxrbase_model.plan import EvaluateStage, Stage
from cxrbase_model.state import size, square, squares
from cxrbase_model.told import NOTHING_TOLD, check_description, check_evaluation
from cxrbase_model.transport import EXACT, Packing
from cxrbase_model.variates import PREFIX

MOST_EXAMPLES = 10_000_000  # no hospital shows a model more pictures in a round; a weight beyond it is a lie or a bug


@dataclass(frozen=True)
class Admitted:
    """An update that may be folded in, with its weight and its Euclidean norm."""

    update: Mapping[str, Tensor]  # made of what arrived as it is read
    examples: int
    norm: float


def unlike(norms: Mapping[str, float], longest: float | None, shortest: float | None) -> dict[str, Code]:
    """The hospitals whose updates are too long or too short beside the others of their round, by the plan's federation.longest and shortest.

    norms: of the updates that were admitted, by hospital. What counts is the median, so fewer than half cannot shift it past the others.
    """
    usual = median(norms.values()) if norms else 0.0
    found: dict[str, Code] = {}
    for name, length in norms.items():
        if longest is not None and length > longest * usual:
            found[name] = Code.OUTLIER
        elif shortest is not None and length < shortest * usual:
            found[name] = Code.SHORT
    return found


def reached_by_most(norms: Collection[float], hospitals: int) -> float:
    """The largest norm that more than half of so many hospitals reach; 0 where too few of them have one.

    While at most half of all are hostile, one of those at least is honest, so that the others cannot raise it above the longest honest norm,
    whoever is silent.
    """
    half = hospitals // 2
    return sorted(norms, reverse=True)[half] if len(norms) > half else 0.0


class Rejected(Exception):
    """A reply that is left out of the round; the code says why. norm: of its update, where that was the reason."""

    def __init__(self, code: Code, norm: float | None = None) -> None:
        super().__init__(code.value)
        self.code, self.norm = code, norm


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


def admit_evaluation(reply: Reply, findings: Sequence[str]) -> dict[str, Any]:
    """The evaluation of a reply; Rejected where it is none of these findings."""
    if not 0 < reply.examples <= MOST_EXAMPLES:
        raise Rejected(Code.EXAMPLES)
    try:
        check_evaluation(evaluation := reply.evaluation or {}, findings)
    except ValueError:
        raise Rejected(Code.MALFORMED) from None
    return evaluation


def admit_description(reply: Reply, findings: Sequence[str]) -> dict[str, Any]:
    """What a hospital tells of itself, with nothing where it tells nothing; Rejected where it is no description under these findings."""
    try:
        check_description(told := reply.description or {}, findings)
    except ValueError:
        raise Rejected(Code.MALFORMED) from None
    return NOTHING_TOLD | told


def claimable(description: Mapping[str, Any], stage: Stage, slack: float | None) -> int:
    """The most examples that a hospital can have trained on in a round of a stage, by what it described in round 0.

    `slack` is the plan's federation.claimed_examples. A count in a bucket is taken at its largest; 0 where none was described.
    """
    if slack is None or isinstance(stage, EvaluateStage):
        return MOST_EXAMPLES
    told = description.get("pictures")
    pictures = _largest(told.get("train") if isinstance(told, Mapping) else None)
    most = math.ceil(slack * pictures * stage.local_epochs) + stage.batch_size  # the last batch is filled up
    return min(most, MOST_EXAMPLES) if pictures else 0


def _largest(count: object) -> int:
    """The largest number that a bucketed count stands for; 0 for what is none."""
    if isinstance(count, str) and count.startswith(">="):
        return MOST_EXAMPLES
    if isinstance(count, str):
        count = int(count[1:10]) - 1 if count.startswith("<") and count[1:10].isdecimal() else 0
    return min(max(count, 0), MOST_EXAMPLES) if isinstance(count, int) else 0


def admit_update(
    reply: Reply,
    reference: Mapping[str, Tensor],
    max_norm: float | None,
    packing: Packing = EXACT,
    *,
    outlying: float | None = None,
    most_examples: int = MOST_EXAMPLES,
    is_local: Callable[[str], bool] = lambda name: False,
) -> Admitted:
    """The update of a reply; Rejected where it does not fit the reference, is not finite or too large.

    packing: as the plan has updates packed. outlying: the norm above which one is too unlike those of the rounds before.
    most_examples: what the hospital can have trained on. is_local: whether a tensor of a name is a hospital's own, and so zero. Norms are of the update alone, without SCAFFOLD's variates.
    """
    if not 0 < reply.examples <= MOST_EXAMPLES:
        raise Rejected(Code.EXAMPLES)
    if reply.examples > most_examples:
        raise Rejected(Code.CLAIM)
    try:
        update = opened(reply.update, packing, size(reference))
    except CodecError:
        raise Rejected(Code.MALFORMED) from None
    if update.keys() != reference.keys():
        raise Rejected(Code.NAMES)
    length = _length(update, reference, is_local)
    if max_norm is not None and length > max_norm:
        raise Rejected(Code.NORM)
    if outlying is not None and length > outlying:
        raise Rejected(Code.OUTLIER, length)
    return Admitted(update, reply.examples, length)


def _length(update: Mapping[str, Tensor], reference: Mapping[str, Tensor], is_local: Callable[[str], bool]) -> float:
    """The norm of an update without its variates; Rejected where a tensor has another shape, is not finite or should have stayed."""
    total = 0.0
    for name, like in reference.items():
        if (own := _square(update, name, like.shape)) is None:
            raise Rejected(Code.SHAPES)
        if not math.isfinite(own):  # squares of float32 numbers do not leave the range of float64
            raise Rejected(Code.NOT_FINITE)
        if own and is_local(name):
            raise Rejected(Code.LOCAL)
        total += 0.0 if name.startswith(PREFIX) else own
    return math.sqrt(total)


def _square(update: Mapping[str, Tensor], name: str, shape: torch.Size) -> float | None:
    """The sum of a float32 tensor's squares, None where the tensor is another one."""
    if isinstance(update, Opened):
        return squares(update.pieces(name)) if update.shape(name) == shape else None
    tensor = update[name]
    return square(tensor) if tensor.shape == shape and tensor.dtype == torch.float32 else None
