"""DP-SGD in the engine (Abadi et al. 2016, arXiv 1607.00133): units by chance, gradients clipped one by one, noise on their sum.

Everything random comes from the `NoiseSource`: who is in a step, crops, masks, stochastic depth, and the noise. The plan's seed has no
part in it, for the server knows that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrbase_model.bookkeeping import Bookkeeper
from cxrbase_model.microbatch import MicroBatches, moved
from cxrbase_model.normals import NoiseSource
from cxrbase_model.parallel import Rows, World
from cxrbase_model.privacy import Mechanism, Privacy
from cxrbase_model.rows import poisson_rows, steps_of
from cxrbase_model.runtime import Runtime
from cxrbase_model.settings import SettingsError


@dataclass(frozen=True)
class Protection:
    """What a plan promises, and where the randomness comes from that keeps the promise."""

    privacy: Privacy
    source: NoiseSource

    def batches(
        self, rows: NDArray[np.int64], patients: NDArray[np.int64], mechanism: Mechanism
    ) -> Iterator[NDArray[np.int64]]:
        """The rows of each step's pictures, often none at all where there are few; `patients` is the patient of each row."""
        keys = units_of(self.privacy, patients)
        return poisson_rows(
            rows, keys, mechanism.rate, mechanism.steps, lambda count: self.source.uniform(count).numpy()
        )

    def apart(
        self, draw: Callable[[Any], tuple[Rows, Tensor]], generators: Mapping[str, torch.Generator]
    ) -> Callable[[Any], tuple[Rows, Tensor]]:
        """A batch's `draw` made picture by picture, each from a seed of its own that nobody knows: no picture's crop or mask
        depends on which others are in the step.
        """

        def drawn(batch: Any) -> tuple[Rows, Tensor]:
            tensors = batch if isinstance(batch, tuple) else (batch,)
            found: list[Rows] = []
            for picture in range(len(tensors[0])):
                for generator in generators.values():
                    generator.manual_seed(self.source.seed())
                alone = tuple(tensor[picture : picture + 1] for tensor in tensors)
                found.append(draw(alone if isinstance(batch, tuple) else alone[0])[0])
            if not found:
                return {"images": tensors[0]}, torch.tensor(1.0)
            return {name: torch.cat([each[name] for each in found]) for name in found[0]}, torch.tensor(1.0)

        return drawn


def protect(privacy: Privacy | None, source: NoiseSource | None) -> Protection | None:
    """The protection that a plan's `privacy:` asks for, None where it asks for none; ValueError where there is no source for it."""
    if privacy is None:
        return None
    if not isinstance(source, NoiseSource):
        raise ValueError("privacy: the plan asks for noise, and there is no source of it")
    return Protection(privacy, source)


def units_of(privacy: Privacy, patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the unit of each row: its patient's, or its own."""
    return patients if privacy.unit == "patient" else np.arange(len(patients))


def mechanism_of(privacy: Privacy, patients: NDArray[np.int64], batch_size: int, epochs: float) -> Mechanism:
    """What a training costs: as many steps as `epochs` passes over the units take, of `batch_size` units each on average."""
    units = len(np.unique(units_of(privacy, patients)))
    steps = steps_of(units, batch_size, epochs)
    return Mechanism(privacy.unit, privacy.noise_multiplier, min(1.0, batch_size / units), steps)


def check_runtime(runtime: Runtime) -> None:
    """SettingsError where the training cannot be computed in this way under `privacy:`; to be asked before anything is spent."""
    for name in ("compile", "recompute"):
        if getattr(runtime, name):
            raise SettingsError(f"compute.{name}: expected false under a plan with privacy, found true")
    if World.current().size > 1:
        raise SettingsError(f"privacy: expected one process, found {World.current().size}; train on one device")


class PrivateBatches(MicroBatches):
    """A batch's noised mean gradient in parts: clipped sums are added up over the parts, noise goes on once, at the end.

    expected: units in a step on average, what the sum is divided by, whatever their number is in this step.
    """

    def __init__(
        self,
        model: nn.Module,
        costs_of: Callable[[Rows], Tensor],
        runtime: Runtime,
        protection: Protection,
        expected: int,
    ) -> None:
        check_runtime(runtime)
        super().__init__(model, costs_of, runtime.device, runtime.micro_batch)
        self._keeper = Bookkeeper(model, protection.privacy)
        self._source, self._expected = protection.source, expected
        self._deviation = protection.privacy.noise_multiplier * protection.privacy.clip

    def backward(self, rows: Rows, total: Tensor) -> Tensor:
        """Leave the noised mean gradient in each `.grad`, also of a step without pictures. Returns 0: a loss is nobody's to know."""
        super().backward(rows, total)
        for parameter in self._keeper.parameters:
            summed = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            summed = summed.cpu().contiguous()
            self._source.add_to(summed, self._deviation, self._expected)
            parameter.grad = summed.to(parameter.device)
        return torch.zeros((), device=self._device)

    def _attempt(self, rows: Rows, total: Tensor, count: int, size: int) -> Tensor:
        for start in range(0, count, max(1, size)):
            part = {name: moved(tensor[start : start + size], self._device) for name, tensor in rows.items()}
            units = len(part["images"])
            with self._keeper.watch(units):
                costs = self._costs_of(part)
                costs.reshape(units, -1).mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            self._keeper.add_clipped()
        return torch.zeros((), device=self._device)
