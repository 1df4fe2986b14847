"""A network of timm, from random weights, trained and tested as a study's own are: what a usual one makes of the same pictures."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from cxrbase_model.classifier import Classifier


class ReferenceNetwork(Classifier):
    """A network of timm on one channel, one logit a finding, with what the training loop asks of a classifier."""

    def __init__(self, network: str, findings: int) -> None:
        nn.Module.__init__(self)
        self.encoder = _Flat()  # type: ignore[assignment]  # the loop asks it for its blocks and their stochastic depth alone
        self.network = timm.create_model(network, in_chans=1, num_classes=findings)

    def forward(self, images_BHW: Tensor, paths_BK2: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, H, W] to logits [B, C]."""
        images = images_BHW[:, None].contiguous(
            memory_format=torch.channels_last
        )  # faster for convolutions in bfloat16
        logits: Tensor = self.network(images)
        return logits


class _Flat(nn.Module):
    """All layers learn at one rate, and none is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def draw_paths(self, batch: int, generator: torch.Generator) -> None:
        """No stochastic depth."""


def build_reference(network: str, findings: int, seed: int) -> ReferenceNetwork:
    """The network from random weights, which timm draws from torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ReferenceNetwork(network, findings).to(memory_format=torch.channels_last)
