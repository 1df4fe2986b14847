"""Where and how to compute. Nothing here changes what is computed, up to the rounding of another order or precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import nn

from cxrbase_model.attention import CrossAttention
from cxrbase_model.vit import Encoder

_READERS = 8


@dataclass(frozen=True)
class Runtime:
    """The device and how it is used.

    precision: float32, or bf16 for autocast to bfloat16. micro_batch: pictures that go through the model at once, all of a batch
    where None; an out-of-memory halves it. compile: by torch.compile, which pays on a GPU after a minute. recompute: trade a
    third more work for most of the activations' memory. deterministic: the same bits each time on the same GPU, a little slower;
    a CPU gives the same bits anyway.
    """

    device: torch.device
    precision: str = "float32"
    micro_batch: int | None = None
    compile: bool = False
    recompute: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"precision: expected float32 or bf16, found {self.precision!r}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch: expected at least 1 picture or None, found {self.micro_batch}")

    @property
    def readers(self) -> int:
        """Threads that read batches ahead: a GPU is not to wait for the disk. On a processor they would take the training's own time."""
        return min(_READERS, os.cpu_count() or 1) if self.device.type == "cuda" else 0

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def prepared(self, model: nn.Module) -> Callable[..., Any]:
        """The model as it is called in training: recomputing and compiled where that is asked for.

        On a processor in bfloat16, attention is computed by plain products: torch's fused kernel there takes 2 to 12 times as
        long for its backward pass, and a quarter more of the whole step.
        """
        fused = self.precision != "bf16" or self.device.type != "cpu"
        for part in model.modules():
            if isinstance(part, Encoder):
                part.recompute = self.recompute
            if isinstance(part, Attention | CrossAttention):
                part.fused_attn = fused  # type: ignore[misc]  # timm says Final for TorchScript alone
        return torch.compile(model, dynamic=False) if self.compile else model

    @contextlib.contextmanager
    def determinism(self) -> Iterator[None]:
        """Deterministic algorithms where they are asked for, and as before afterwards.

        cuBLAS repeats its sums only with a fixed workspace, and torch refuses to multiply matrices without it.
        """
        before = torch.are_deterministic_algorithms_enabled()
        if self.deterministic and self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
