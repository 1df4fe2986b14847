"""The weights of the best look at validation patients are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from client.app import runtime_for
from client.site import Compute
from cxrbase_model.classifier import Classifier
from sim.choice import Chooser, mean_auroc


class _Brightness(torch.nn.Module):
    """Tells by a weight times the mean grey value: with a weight above zero it is always right on `_pool`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, images_BHW: torch.Tensor) -> torch.Tensor:
        return self.weight * images_BHW.mean(dim=(1, 2))[:, None]


def _pool() -> Any:
    pictures = torch.arange(0, 240, 24, dtype=torch.uint8)[:, None, None].expand(10, 8, 8)
    labels = np.repeat([0, 1], 5).astype(np.float32)[:, None]
    return SimpleNamespace(hospitals=np.zeros(10, int), labels=labels, batches=lambda rows: iter([pictures[rows]]))


def test_the_best_looks_weights_are_given_back() -> None:
    model: Any = _Brightness()
    kept: Classifier = model
    chooser = Chooser(kept, _pool(), np.arange(10), 2, runtime_for(Compute(threads=1), "float32"))
    for step, _ in enumerate(chooser.watch([(torch.zeros(1), torch.zeros(1))] * 6)):
        model.weight.data.fill_([-2.0, -2.0, 3.0, 3.0, -4.0, -4.0][step])
    assert chooser.measures == [0.0, 1.0, 0.0]
    chooser.restore()
    assert model.weight.item() == 3.0


def test_hospitals_without_both_classes_do_not_count() -> None:
    pool: Any = SimpleNamespace(
        hospitals=np.array([0, 0, 1, 1, 2, 2]), labels=np.array([0, 1, 1, 1, 1, 0], np.float32)[:, None]
    )
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.1, 0.9], np.float32)
    assert mean_auroc(scores, pool, np.arange(6)) == 0.5
    assert mean_auroc(scores[:4], pool, np.arange(4)) == 1.0
    assert mean_auroc(scores[2:4], pool, np.arange(2, 4)) == 0.5
