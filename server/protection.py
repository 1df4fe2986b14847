"""Hospital-level privacy on the server's side: the clip of each round, its noise, and what of the promise is spent (aggregation.privacy)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.clipping import protected_names
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, Round
from cxrbase_model.protection import TAILS, Adaptive, HospitalPrivacy
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import State
from server.records import Record
from server.spent import Spent, Sum
from server.stage_model import stage_model
from server.store import RunStore

_LEAST, _MOST = 1e-12, 1e12  # of an adaptive clip
_LONGEST_STEP = (
    100.0  # exponent of a step, which leads from any clip to the largest; noise may ask for more than a float holds
)


class Protection:
    """What one attempt at a round does for privacy. Numbers of updates are counted in clips, so that their range is that of ones.

    clip: the round's bound. names: the tensors that are clipped and get noise. divisor: hospitals asked, which no update changes.
    """

    def __init__(
        self, privacy: HospitalPrivacy, quorum: int, names: frozenset[str], clip: float, made: Sum, spent: Spent,
        source: NoiseSource,
    ) -> None:  # fmt: skip
        self.clip, self.names, self.divisor = clip, names, len(made.asked)
        self._privacy, self._quorum, self._made, self._spent, self._source = privacy, quorum, made, spent, source
        self._short, self._made_one = 0.0, False
        if not self.clips:  # what hospitals send is out with its noise, whether the attempt succeeds or not
            spent.add(made)

    def longest(self, numbers: int) -> float:
        """The largest norm, in clips, of an update of so many numbers that a hospital which keeps to the plan sends."""
        return 1 + self._privacy.share(self._quorum) * (math.sqrt(numbers) + TAILS)

    @property
    def clips(self) -> bool:
        """Whether updates are clipped on arrival; those with noise in them would be spoiled by it."""
        return self._privacy.noise == "server"

    def spend(self) -> None:
        """Count the round's sum as made, where it is not yet. OSError on a full disk."""
        self._made_one = True
        if self.clips:
            self._spent.add(self._made)

    def draw(self, count: int) -> NDArray[np.float64]:
        """The noise of `count` numbers of the sum, in clips; zeros where hospitals have added it. Only after `spend`."""
        noise = self._privacy.update_noise if self.clips else 0.0
        if not noise:
            return np.zeros(count)
        drawn: NDArray[np.float64] = self._source.normal(count).mul_(noise).numpy()
        return drawn

    def count(self, short: float, *, noised: bool = False) -> None:
        """Take the sum of the hospitals' parts of the count, half for a short update and minus half for a long one; it gets its noise here, or had it."""
        sigma = 0.0 if noised else self._privacy.count_noise
        self._short = short + (sigma * float(self._source.normal(1)) if sigma else 0.0)

    def released(self, total: Mapping[str, Tensor]) -> State:
        """What `Noised` makes of updates, made of a sum (float32, in units of the weights) that secure aggregation has learned."""
        self.spend()
        step: State = {}
        for name, tensor in total.items():
            if name not in self.names:
                step[name] = torch.zeros_like(tensor)
                continue
            noise = torch.from_numpy(self.draw(tensor.numel())).mul_(self.clip).reshape(tensor.shape)
            step[name] = noise.add_(tensor).div_(self.divisor).float()
        return step

    def told(self) -> Record:
        """What the round's record says of it; nothing of it was without noise. None for an infinite epsilon.

        RuntimeError where the sum was not made by `spend` and `draw`: such a round must not be committed.
        """
        if not self._made_one:
            raise RuntimeError("aggregation.privacy: a sum was made without its noise; the round is not committed")
        epsilons = self._spent.epsilons(self._privacy.delta)
        record: Record = {
            "clip": self.clip,
            "noise": self._privacy.noise_multiplier,
            "delta": self._privacy.delta,
            "epsilon": _finite(max(epsilons.values())),
            "hospitals": {name: _finite(value) for name, value in epsilons.items()},
            "sums": self._spent.most(),
            "divisor": self.divisor,
            "seeded": self._source.seeded,
        }
        if self._privacy.adaptive is not None:
            short = 0.5 + self._short / self.divisor
            record |= {"short": short, "next_clip": next_clip(self.clip, short, self._privacy.adaptive)}
        return record


class RunPrivacy:
    """The privacy of a run; what it has spent goes on from the run directory. Does nothing where the plan has no aggregation.privacy."""

    def __init__(self, store: RunStore, noise_seed: int | None = None) -> None:
        self._store, self._seed = store, noise_seed
        self._spent = Spent(store.folder)
        self._names: dict[str, frozenset[str]] = {}

    def of(self, item: Round, attempt: int, asked: list[str]) -> Protection | None:
        """The protection of one attempt at a round that asks these hospitals; None where nothing is promised, or nothing trained."""
        plan = self._store.plan
        privacy = plan.aggregation.privacy
        if privacy is None or isinstance(item.stage, EvaluateStage) or not asked:
            return None
        seed = None if self._seed is None else derive_seed(self._seed, "privacy noise", item.number, str(attempt))
        made = Sum(item.number, attempt, privacy.noise_multiplier, tuple(asked))
        return Protection(
            privacy, plan.federation.quorum, self._of_stage(plan, item.stage), self._clip(privacy, item), made,
            self._spent, NoiseSource(seed),
        )  # fmt: skip

    def _of_stage(self, plan: Plan, stage: PretrainStage | FinetuneStage) -> frozenset[str]:
        if stage.name not in self._names:
            self._names[stage.name] = protected_names(stage_model(plan, stage), plan.aggregation)
        return self._names[stage.name]

    def _clip(self, privacy: HospitalPrivacy, item: Round) -> float:
        """The plan's clip, or the one that the stage's last round has led to."""
        earlier = [record for record in self._store.records() if record["stage"] == item.stage.name]
        if privacy.adaptive is None or not earlier:
            return privacy.clip
        return float(earlier[-1]["privacy"]["next_clip"])


def next_clip(clip: float, short: float, adaptive: Adaptive) -> float:
    """The bound after a round in which the share `short` of the updates was below it: a geometric step towards the quantile."""
    exponent = min(-adaptive.lr * (short - adaptive.quantile), _LONGEST_STEP)
    return min(max(clip * math.exp(exponent), _LEAST), _MOST)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
