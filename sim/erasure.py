"""A head that sees embeddings without what tells the known hospitals apart (linear concept erasure: Belrose et al. 2023, arXiv 2306.03819).

Where the known hospitals' mean embeddings are equal, no linear probe can tell them. The smallest change that makes them so is a
projection in whitened space. It is made of sums over each hospital's pictures, so a federation could do it, too; only linear information goes.

Shapes: D width, K directions, N pictures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrbase_model.classifier import Classifier
from cxrbase_model.predict import embed
from cxrbase_model.runtime import Runtime
from cxrbase_model.vit import patchify

_PENALTY = 1e-2  # on the head's squared weights, whose features have unit deviation
_RIDGE = 1e-4  # share of the mean variance that is added to each direction's
_STEPS = 200


class Refitted(Classifier):
    """A trained encoder with a new linear head on its mean features, standardised and, where asked, with the hospital erased."""

    mean: Tensor
    deviation: Tensor
    erasing: Tensor

    def __init__(self, classifier: Classifier, mean_D: Tensor, deviation_D: Tensor, erasing_DD: Tensor) -> None:
        nn.Module.__init__(self)
        self.encoder = classifier.encoder
        self.head = nn.Linear(len(mean_D), 1)
        self.register_buffer("mean", mean_D)
        self.register_buffer("deviation", deviation_D)
        self.register_buffer("erasing", erasing_DD)

    def cleaned(self, embedding_BD: Tensor) -> Tensor:
        """Mean features [B, D] as the head sees them."""
        return (embedding_BD.float() - self.mean) / self.deviation @ self.erasing.T

    def forward(self, images_BHW: Tensor, paths_BK2: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, H, W] to the logit of the first finding, [B, 1]."""
        features = self.encoder(patchify(images_BHW, self.encoder.patch), paths_BK2=paths_BK2)
        logits: Tensor = self.head(self.cleaned(features.mean(dim=1)))
        return logits


def refit(
    model: Classifier,
    known_ND: NDArray[np.float32],
    hospitals_N: NDArray[np.int64],
    present_N: NDArray[np.float32],
    erase: bool,
) -> Refitted:
    """Fit a head by logistic regression on embeddings of training pictures, of which those with an unknown finding (NaN) help to erase.

    A finding of a hospital counts as much as any other, however many pictures it has.
    """
    mean_D, deviation_D = known_ND.mean(axis=0), known_ND.std(axis=0) + 1e-6
    width = known_ND.shape[1]
    erasing_DD = eraser((known_ND - mean_D) / deviation_D, hospitals_N) if erase else np.eye(width)
    new = Refitted(model, *(torch.from_numpy(each).float() for each in (mean_D, deviation_D, erasing_DD)))
    rows = np.flatnonzero(np.isfinite(present_N))
    _, cell, counts = np.unique(
        hospitals_N[rows] * 2 + (present_N[rows] >= 0.5), return_inverse=True, return_counts=True
    )
    weights_N = torch.from_numpy(1 / (len(counts) * counts[cell])).float()
    features_ND = new.cleaned(torch.from_numpy(known_ND[rows]))
    _fit(new.head, features_ND, torch.from_numpy((present_N[rows] >= 0.5).astype(np.float32)), weights_N)
    return new


def eraser(features_ND: NDArray[np.float32], hospitals_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """The matrix [D, D] that makes the hospitals' mean features equal and changes the features least."""
    names = np.unique(hospitals_N)
    means = np.stack([features_ND[hospitals_N == each].mean(axis=0, dtype=np.float64) for each in names])
    covariance = np.cov(features_ND.T.astype(np.float64))
    covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whiten, colour = ((vectors * values**power) @ vectors.T for power in (-0.5, 0.5))
    directions_DK, lengths, _ = np.linalg.svd(whiten @ (means - means.mean(axis=0)).T, full_matrices=False)
    directions_DK = directions_DK[:, lengths > 1e-6 * lengths[0]]
    erasing: NDArray[np.float64] = np.eye(len(covariance)) - colour @ directions_DK @ directions_DK.T @ whiten
    return erasing


def embeddings(model: Classifier, batches: Iterator[Tensor], runtime: Runtime) -> NDArray[np.float32]:
    """The mean features of pictures that come in batches, [N, D], as the model's head sees them."""
    found = embed(model, batches, runtime)
    if isinstance(model, Refitted):
        found = model.cleaned(found)
    result: NDArray[np.float32] = found.detach().numpy()
    return result


def _fit(head: nn.Linear, features_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> None:
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        costs = nn.functional.binary_cross_entropy_with_logits(
            head(features_ND)[:, 0], targets_N, weights_N, reduction="sum"
        )
        value = costs + _PENALTY * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch's own signature has no types
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
