"""Features that do not tell the hospital: an adversary whose gradient is reversed (Ganin et al. 2016, arXiv 1505.07818).

A small network learns to tell from the embedding which hospital a picture is from, and the encoder learns the opposite. It is asked
among pictures of one finding at a time (as Long et al. 2018, arXiv 1705.10667, condition it): hospitals differ in how much disease they
have, and an encoder that hides this hides the disease. It needs pictures of several hospitals in one batch, so no federation can do it.

Shapes: C findings, D width, H hospitals, N pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrbase_model.classifier import Classifier
from cxrbase_model.seeds import generator
from cxrbase_model.vit import initialise, patchify

_HIDDEN = 64


def hospital_targets(labels_N: NDArray[np.float32], hospitals_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the adversary is asked of each picture, [N, 2*H]: 1 for its hospital and 0 for others in the half of its finding, NaN in the other."""
    count = int(hospitals_N.max()) + 1
    targets = np.full((len(labels_N), 2, count), np.nan, np.float32)
    for present in (0, 1):
        rows = np.flatnonzero((labels_N >= 0.5) == bool(present) if present else labels_N < 0.5)
        targets[rows, present] = np.eye(count, dtype=np.float32)[hospitals_N[rows]]
    return targets.reshape(len(labels_N), 2 * count)


class Adversarial(Classifier):
    """A classifier whose logits are followed by the adversary's, [B, C + 2*H]; its gradient reaches the encoder reversed."""

    def __init__(self, classifier: Classifier, hospitals: int, strength: float, seed: int) -> None:
        nn.Module.__init__(self)
        self.encoder, self.pool = classifier.encoder, classifier.pool
        self.head_norm, self.head = classifier.head_norm, classifier.head
        width = self.encoder.embed.out_features
        self.critic = nn.Sequential(nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 2 * hospitals))
        initialise(self.critic, generator(seed, "initial weights", "adversary"))
        self.strength = strength

    def forward(self, images_BHW: Tensor, paths_BK2: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, H, W] to the finding's logits and the adversary's; pooling is the mean."""
        embedding_BD = self.encoder(patchify(images_BHW, self.encoder.patch), paths_BK2=paths_BK2).mean(dim=1)
        told: Tensor = self.critic(_Reversed.apply(embedding_BD, self.strength))
        return torch.cat([self.head(self.head_norm(embedding_BD)), told], dim=1)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(context: Any, x: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradient, None
