"""Update arithmetic: a state is what travels, an update is the difference a hospital's training made to it.

`State` maps parameter names to float32 tensors on the CPU. Clipping, noise, norm checks and robust rules are all defined on
updates, so both sides subtract and add with the functions here and compare digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]

_PIECE = 1 << 15  # numbers that are worked on at a time: they stay in the processor's cache, and one thread is enough


def state_of(module: nn.Module) -> State:
    """A copy of everything in the module that travels: parameters and persistent buffers, float32 on the CPU."""
    return {
        name: tensor.detach().to(device="cpu", dtype=torch.float32, copy=True)
        for name, tensor in module.state_dict().items()
    }


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a module; ValueError where names or shapes differ."""
    own = module.state_dict()
    problem = mismatch(state, own)
    if problem:
        raise ValueError(f"state does not fit the model: {problem}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def moving_names(module: nn.Module) -> frozenset[str]:
    """The tensors of a module's state that local training can change, and that alone have to travel back from a hospital.

    These are the parameters that have a gradient, and what a module says of itself in `moves`, prefixes of the names of tensors
    that follow others (an average of past weights). All others come back as they went.
    """
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for where, part in module.named_modules():
        for prefix in getattr(part, "moves", ()):
            whole = f"{where}.{prefix}" if where else prefix
            names.update(name for name in module.state_dict() if name.startswith(whole))
    return frozenset(names)


def subtract(local: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> State:
    """The update `local - reference`, tensor by tensor."""
    return {name: local[name] - reference[name] for name in reference}


def add(reference: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> State:
    """The state `reference + update`, tensor by tensor."""
    return {name: reference[name] + update[name] for name in reference}


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> State:
    """The part of a state whose names start with a prefix, such as `encoder.`; names are kept."""
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def mismatch(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> str | None:
    """What makes a state differ in names or shapes from a reference: `names`, `shapes`, or None where they agree."""
    if state.keys() != reference.keys():
        return "names"
    if any(state[name].shape != reference[name].shape for name in reference):
        return "shapes"
    return None


def is_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every number of a state is finite."""
    return all(bool(torch.isfinite(torch.stack(tensor.aminmax())).all()) for tensor in state.values() if tensor.numel())


def norm(state: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(sum(square(tensor) for tensor in state.values()))


def square(tensor: Tensor) -> float:
    """The sum of squares, in float64 a piece at a time: a copy of the whole would be twice as large as the tensor."""
    return squares([tensor.detach().reshape(-1)])


def squares(pieces: Iterable[Tensor]) -> float:
    """The sum of the squares of all numbers of pieces [N].

    Not by torch's product of vectors, which shares even so few numbers among threads: where other work keeps a core busy, each piece
    waited for the other thread, and a round's norms took minutes. The sum does not depend on the number of threads either.
    """
    room, total = torch.empty(_PIECE, dtype=torch.float64), 0.0
    for piece in pieces:
        for part in torch.split(piece, _PIECE):
            numbers = room[: len(part)].copy_(part).numpy()
            total += float(np.einsum("i,i", numbers, numbers))
    return total


def size(state: Mapping[str, Tensor]) -> int:
    """How many numbers a state holds."""
    return sum(tensor.numel() for tensor in state.values())


def byte_size(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state in its own precision."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 bytes in name order; 64 hexadecimal digits."""
    whole = Digest()
    for name in sorted(state):
        whole.add(name, state[name])
    return whole.hexadecimal()


class Digest:
    """The digest of a state whose tensors come one after the other, in the order of their names."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in the next tensor."""
        tensor = tensor.detach().to(device="cpu", dtype=torch.float32)
        self.add_parts(name, tensor.shape, [tensor.reshape(-1)])

    def add_parts(self, name: str, shape: torch.Size, parts: Iterable[Tensor]) -> None:
        """As `add`, of a tensor whose float32 numbers come in parts [N] that need not be there together."""
        self._hash.update(json.dumps([name, list(shape)]).encode())
        for part in parts:
            self._hash.update(part.contiguous().numpy())  # type: ignore[arg-type]  # numpy arrays are buffers

    def hexadecimal(self) -> str:
        """The digest of what has come."""
        return self._hash.hexdigest()
