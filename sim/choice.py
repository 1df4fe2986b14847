"""Which weights of a fine-tuning are kept: those that told validation patients best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.classifier import Classifier
from cxrbase_model.metrics import auroc
from cxrbase_model.predict import predict
from cxrbase_model.runtime import Runtime
from cxrbase_model.state import State, load_state, state_of
from sim.pool import Pool

Batch = tuple[Tensor, Tensor]


class Chooser:
    """Looks at validation pictures every so many steps, and remembers the weights of the best look.

    A look's measure is the mean over the hospitals of the AUROC of the first finding; hospitals without both classes do not count.
    """

    def __init__(self, model: Classifier, pool: Pool, rows: NDArray[np.int64], every: int, runtime: Runtime) -> None:
        self._model, self._pool, self._rows = model, pool, rows
        self._every, self._runtime = every, runtime
        self._best: State = {}
        self.measures: list[float] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they are; between them, when the trainer asks for the next one, is the time to look."""
        for number, batch in enumerate(batches):
            if number and number % self._every == 0:
                self._look()
            yield batch
        self._look()

    def restore(self) -> None:
        """Give the model the weights of the best look, of equal ones the earliest's."""
        load_state(self._model, self._best)

    def _look(self) -> None:
        scores = predict(self._model, self._pool.batches(self._rows), self._runtime)[:, 0].numpy()
        self._model.train()
        self.measures.append(mean_auroc(scores, self._pool, self._rows))
        if self.measures[-1] > max(self.measures[:-1], default=-1.0):
            self._best = {name: tensor.clone() for name, tensor in state_of(self._model).items()}


def mean_auroc(scores_N: NDArray[np.float32], pool: Pool, rows_N: NDArray[np.int64]) -> float:
    """The mean over the hospitals that have both classes among these rows; 0.5 where none has."""
    values = []
    for hospital in np.unique(pool.hospitals[rows_N]):
        own = pool.hospitals[rows_N] == hospital
        targets = (pool.labels[rows_N[own], 0] >= 0.5).astype(float)
        if 0 < targets.sum() < len(targets):
            values.append(auroc(scores_N[own].astype(float), targets))
    return float(np.mean(values)) if values else 0.5
