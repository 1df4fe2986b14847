"""The server's mean of updates."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from bench.timing import fastest
from server.aggregate import WeightedMean


def fold() -> dict[str, float]:
    """Folding eight updates into the running mean as they come against keeping them all and averaging at the end."""
    generator = torch.Generator().manual_seed(0)
    state = {f"layer{index}": torch.randn(768, 768, generator=generator) for index in range(12)}
    updates = [{name: torch.randn_like(tensor) * 0.01 for name, tensor in state.items()} for _ in range(8)]

    def folded() -> None:
        with tempfile.TemporaryDirectory() as folder, WeightedMean(state, Path(folder) / "sums") as mean:
            for update in updates:
                mean.fold(update, 10)
            mean.result()

    def kept() -> None:
        for name in state:
            torch.stack([update[name].double() * 10 for update in updates]).sum(0).div_(80).float()

    ours, plain = fastest(folded), fastest(kept)
    size = sum(tensor.nbytes for tensor in state.values())
    return {"seconds": ours, "seconds_plain": plain, "ratio": plain / ours, "megabytes_of_an_update": size / 1e6}
