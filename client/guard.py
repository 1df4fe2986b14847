"""A training under a plan's `privacy:` in a hospital: what it costs is booked first, then it draws its noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.budget import reserve
from client.dataset import Batch, Cache
from client.site import Site
from cxrbase_model.dpsgd import Protection, check_runtime, mechanism_of, protect
from cxrbase_model.messages import Task
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import FinetuneStage, PretrainStage, Privacy
from cxrbase_model.privacy import Mechanism
from cxrbase_model.runtime import Runtime

Noise = Callable[[Site, Task], NoiseSource]


def secure(site: Site, task: Task) -> NoiseSource:
    """Noise that nobody can repeat: what every hospital has. No file and no message can choose another one; a simulation may."""
    return NoiseSource()


@dataclass(frozen=True)
class Guarded:
    """One training whose cost is booked: what protects it, and its Poisson batches."""

    protection: Protection
    mechanism: Mechanism
    cache: Cache
    rows: NDArray[np.int64]

    def batches(self) -> Iterator[Batch]:
        """Pictures and labels of each step, drawn by chance from secret numbers."""
        for chosen in self.protection.batches(self.rows, self.cache.patients[self.rows], self.mechanism):
            yield torch.from_numpy(self.cache.pixels(chosen)), torch.from_numpy(self.cache.labels[chosen])


def begin(
    noise: Noise, privacy: Privacy, site: Site, task: Task, stage: PretrainStage | FinetuneStage, cache: Cache,
    rows: NDArray[np.int64], runtime: Runtime,
) -> Guarded:  # fmt: skip
    """Book a training's cost; Refused where the budget does not allow it, SettingsError where it cannot be computed in this way."""
    check_runtime(runtime)
    protection = protect(privacy, noise(site, task))
    assert protection is not None  # there is a `privacy`
    mechanism = mechanism_of(privacy, cache.patients[rows], stage.batch_size, stage.local_epochs)
    reserve(site, task, mechanism)
    return Guarded(protection, mechanism, cache, rows)
