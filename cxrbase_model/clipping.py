"""Clipping of a whole update, and of which of its tensors: what hospital and server must do alike for aggregation.privacy."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from cxrbase_model.aggregation import Aggregation
from cxrbase_model.state import State, moving_names, norm

MARGIN = 1e-5  # of the bound, for rounding to float32 and to the server's 2^-32 of a clip: 2^-33 x sqrt(numbers) up to 7e9 numbers


def protected_names(model: nn.Module, aggregation: Aggregation) -> frozenset[str]:
    """The tensors of a stage's model that an update can change; the others are zero in every update, by the plan alone.

    These are clipped together and get noise. What is frozen or stays in the hospital would only be spoiled by noise.
    """
    return frozenset(name for name in moving_names(model) if not aggregation.is_local(name))


def factor(update: Mapping[str, Tensor], clip: float, names: Collection[str], margin: float = MARGIN) -> float:
    """What to multiply the named tensors by so that their Euclidean norm together is at most `clip`; 1 where it is.

    What is too long gets `margin` less than `clip`, so that no rounding that follows makes it longer. The numbers have to be finite.
    """
    length = norm({name: update[name] for name in names})
    return 1.0 if length <= clip * (1 - margin) else clip * (1 - margin) / length


def clip_(update: State, clip: float, names: Collection[str], margin: float = MARGIN) -> None:
    """Multiply the named tensors of an update by their `factor`, and set all others to zero, in place."""
    scale = factor(update, clip, names, margin)
    for name, tensor in update.items():
        tensor.mul_(scale if name in names else 0.0)


def is_short(update: Mapping[str, Tensor], clip: float, names: Collection[str]) -> bool:
    """Whether clipping leaves an update as it is; also told of one that was clipped already."""
    return norm({name: update[name] for name in names}) < clip * (1 - 1.1 * MARGIN)
