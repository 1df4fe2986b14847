"""How well a linear probe tells the hospital of a picture from its embedding: what the model has kept of the scanner and the place."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_PENALTY = 1e-3  # on the squared weights, whose features have unit deviation
_STEPS = 200


def linear_probe(
    known_ND: NDArray[np.float32], known: NDArray[np.int64], new_MD: NDArray[np.float32], new: NDArray[np.int64]
) -> float:
    """Balanced accuracy in [0, 1] of logistic regression, learned from the known embeddings [N, D] and tested on new ones [M, D].

    Hospitals count alike however many pictures they have; chance is one over their number. A hospital without new pictures is left out.
    """
    mean, deviation = known_ND.mean(axis=0), known_ND.std(axis=0) + 1e-6
    features, others = (torch.from_numpy((each - mean) / deviation).float() for each in (known_ND, new_MD))
    names, targets = np.unique(known, return_inverse=True)
    weights = torch.from_numpy(len(targets) / (len(names) * np.bincount(targets))).float()
    wanted = torch.from_numpy(targets)
    model = nn.Linear(features.shape[1], len(names))
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(features), wanted, weights) + _PENALTY * model.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch's own signature has no types
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        told = names[model(others).argmax(dim=1).numpy()]
    return float(np.mean([(told[new == each] == each).mean() for each in np.unique(new)]))
