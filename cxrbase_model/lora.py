"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): the weights stay, a product of two thin matrices is learned beside them.

The product is not scaled: a scale does what the learning rate does. Names of the weights stay as they were, so that states with and
without adapters have the same encoder, and `merged` gives an ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cxrbase_model.state import State

_ADAPTED = ("qkv", "proj", "fc1", "fc2")  # every matrix of a block (QLoRA, arXiv 2305.14314, section 4)
_DOWN, _UP = ".lora_down.weight", ".lora_up.weight"


class LoraLinear(nn.Linear):
    """A Linear, frozen, plus `lora_up(lora_down(x))`, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.requires_grad_(False)
        self.lora_down = nn.Linear(self.in_features, rank, bias=False)
        self.lora_up = nn.Linear(rank, self.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        change: Tensor = self.lora_up(self.lora_down(x))
        return super().forward(x) + change


def add_adapters(blocks: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Give each matrix of some transformer blocks an adapter of a rank; nothing that they compute changes yet."""
    for parent in list(blocks.modules()):
        for name, child in list(parent.named_children()):
            if name in _ADAPTED and isinstance(child, nn.Linear):
                setattr(parent, name, LoraLinear(child, rank, generator))


def merged(state: Mapping[str, Tensor]) -> State:
    """A state whose adapters, if any, are added to the weights beside them."""
    found = {name: tensor for name, tensor in state.items() if not name.endswith((_DOWN, _UP))}
    for name, up in state.items():
        if name.endswith(_UP):
            base = name.removesuffix(_UP)
            found[f"{base}.weight"] = state[f"{base}.weight"] + up @ state[f"{base}{_DOWN}"]
    return found
