"""How a plan turns the updates of a round into one step of the global model: its `aggregation:` section.

`rule` makes one update of many, `step` applies it, and the two combine freely. FedAvg is `mean` with `add`; FedAvgM, FedAdam, FedYogi
and FedAdagrad are the mean with the step of that name; FedProx is any of them with `proximal` above zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from cxrbase_model.protection import HospitalPrivacy, Secure
from cxrbase_model.settings import SettingsError, knob


@dataclass(frozen=True)
class Mean:
    """The weighted mean (FedAvg, McMahan et al. 2017, arXiv 1602.05629).

    Helps where every hospital is honest: no rule has less variance. One hospital can move it anywhere.
    Cost: one accumulator of twice the float32 model on disk, a piece of it in memory, whatever the number of hospitals.
    """

    least: ClassVar[int] = 1  # updates that it makes sense of
    kind: str = knob("mean", choices=("mean",), why="names the rule")


@dataclass(frozen=True)
class BoundedMean:
    """The weighted mean of updates that are scaled down to a norm (Sun et al. 2019, arXiv 1911.07963).

    Helps against a hospital that is loud, by a bug or to take over, at no loss for the others. A hostile update of ordinary length
    still counts as one. Cost: that of the mean, and in a stage's first round without `bound` the round's updates on disk.
    """

    least: ClassVar[int] = 1  # updates that it makes sense of
    kind: str = knob("bounded-mean", choices=("bounded-mean",), why="names the rule")
    bound: float | None = knob(None, low=1e-12, why="largest Euclidean norm that counts; none takes it from `factor`")
    factor: float = knob(
        1.0,
        low=0.01,
        high=100.0,
        why="the bound as a multiple of the median norm of the stage's last rounds, in its first round of that round's own updates",
    )


@dataclass(frozen=True)
class AngleMean:
    """The mean weighted layer by layer by the cosine of each hospital's weights to the global ones (L-DAWA, Rehman et al. 2023, arXiv 2307.07393).

    Helps self-supervised pretraining over hospitals whose pictures differ much: a layer that has turned far away counts less. Weights
    are normalised to one in each layer, so that layers keep their length. Cost: the mean's, and one pass over each update.
    """

    least: ClassVar[int] = 1  # updates that it makes sense of
    kind: str = knob("angle-mean", choices=("angle-mean",), why="names the rule")


@dataclass(frozen=True)
class Median:
    """The median of each coordinate (Yin et al. 2018, arXiv 1803.01498).

    Helps while fewer than half of the hospitals are hostile or broken. Where hospitals differ honestly, what only a minority has learned
    is lost. Hospitals count alike. Cost: the round's updates on disk, and one sort of each coordinate.
    """

    least: ClassVar[int] = 3  # updates that it makes sense of
    kind: str = knob("median", choices=("median",), why="names the rule")


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its largest and smallest values (Yin et al. 2018, arXiv 1803.01498).

    Helps while at most that share of the hospitals is hostile; keeps more of what the honest ones differ in than the median. The first
    robust rule to try where hospitals are alike, with federation.longest, shortest and cosine. Hospitals count alike. Cost: as the median.
    """

    least: ClassVar[int] = 3  # updates that it makes sense of
    kind: str = knob("trimmed-mean", choices=("trimmed-mean",), why="names the rule")
    share: float = knob(0.2, low=0.01, high=0.49, why="share of the hospitals left out at each end, rounded up")


@dataclass(frozen=True)
class Krum:
    """The updates that lie closest to their neighbours (Krum and Multi-Krum, Blanchard et al. 2017, arXiv 1703.02757).

    Helps against colluding minorities whose size is known. Whole hospitals are left out, so an honest one that is unlike the others is
    never heard. Hospitals count alike. Cost: the round's updates on disk, and the distances of all pairs.
    """

    kind: str = knob("krum", choices=("krum",), why="names the rule")
    attackers: int = knob(1, unit="hospitals", low=0, high=1000, why="how many hostile hospitals are reckoned with")
    selected: int = knob(
        1, unit="hospitals", low=1, high=1000, why="updates averaged; 1 is Krum, more is Multi-Krum, which is smoother"
    )

    @property
    def least(self) -> int:
        """The fewest updates that the rule makes sense of: the paper's bound, and as many as are selected."""
        return max(2 * self.attackers + 3, self.selected + self.attackers)


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least sum of distances to all updates (RFA, Pillutla et al. 2022, arXiv 1912.13445).

    Helps while fewer than half of the hospitals are hostile, and loses less than the median of coordinates where hospitals differ
    honestly. Updates count whole, so one that is honest but for its classifier's head turns the head. Hospitals count alike. Cost: as
    Krum; the iterations work on distances alone.
    """

    least: ClassVar[int] = 3  # updates that it makes sense of
    kind: str = knob("geometric-median", choices=("geometric-median",), why="names the rule")
    smoothing: float = knob(
        1e-6, low=1e-12, high=1.0, why="smallest distance that a weight is divided by, of the closest majority's radius"
    )


Rule = Mean | BoundedMean | AngleMean | Median | TrimmedMean | Krum | GeometricMedian


@dataclass(frozen=True)
class Add:
    """The update is added as it is. Helps as long as nothing shows that it does not: there is nothing to tune. No cost."""

    kind: str = knob("add", choices=("add",), why="names the step")


@dataclass(frozen=True)
class Momentum:
    """Momentum on the server (FedAvgM, Hsu et al. 2019, arXiv 1909.06335).

    Helps where hospitals differ and few are asked in a round, so that updates point to and fro. Cost: one float32 model.
    """

    kind: str = knob("fedavgm", choices=("fedavgm",), why="names the step")
    lr: float = knob(1.0, low=1e-6, high=100.0, why="factor of the step; (1 - momentum) keeps the plain mean's length")
    momentum: float = knob(0.9, low=0.0, high=0.9999, why="share of the last step that goes on")


@dataclass(frozen=True)
class Adaptive:
    """What the adaptive steps of Reddi et al. 2021 (arXiv 2003.00295, algorithm 2) share. Cost: one or two float32 models."""

    lr: float = knob(1e-3, low=1e-8, high=100.0, why="step of a coordinate whose updates agree, in units of weights")
    beta1: float = knob(0.9, low=0.0, high=0.9999, why="decay of the mean of updates")
    tau: float = knob(1e-3, low=1e-12, high=1.0, why="smallest root mean square divided by; small adapts more")


@dataclass(frozen=True)
class Adagrad(Adaptive):
    """FedAdagrad: steps shrink with all that a coordinate has moved. Helps with sparse updates and short runs; ends slow in long ones."""

    kind: str = knob("fedadagrad", choices=("fedadagrad",), why="names the step")
    beta1: float = knob(0.0, low=0.0, high=0.9999, why="decay of the mean of updates")


@dataclass(frozen=True)
class Adam(Adaptive):
    """FedAdam: steps by the recent size of each coordinate. Helps where layers learn at different speeds; `lr` has to be tuned."""

    kind: str = knob("fedadam", choices=("fedadam",), why="names the step")
    beta2: float = knob(0.99, low=0.0, high=0.9999, why="decay of the mean of squared updates")


@dataclass(frozen=True)
class Yogi(Adaptive):
    """FedYogi: as FedAdam, but the size of a coordinate changes slowly. Helps where some rounds have far larger updates than others."""

    kind: str = knob("fedyogi", choices=("fedyogi",), why="names the step")
    beta2: float = knob(0.99, low=0.0, high=0.9999, why="decay of the mean of squared updates")


Step = Add | Momentum | Adagrad | Adam | Yogi


@dataclass(frozen=True)
class Aggregation:
    """How the updates of a round become one step of the global model."""

    rule: Rule = knob(factory=Mean, why="makes one update of many")
    step: Step = knob(factory=Add, why="applies it; what it remembers is committed with the weights")
    proximal: float = knob(
        0.0,
        low=0.0,
        high=100.0,
        why="FedProx (Li et al. 2020, arXiv 1812.06127): pull of the local weights towards the global ones; 0 for none",
    )
    mixing: float = knob(
        0.0,
        low=0.0,
        high=1e6,
        why="FedEMA (Zhuang et al. 2022, arXiv 2204.04385) in pretraining: share of the global encoder in what a hospital trains from, "
        "per unit of its distance to the hospital's own; 0 for the global one alone",
    )
    scaffold: bool = knob(
        False,
        why="SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378): gradients are corrected by how a hospital's differ from all "
        "others', against drift in long local training; twice the bytes both ways",
    )
    keep_local: tuple[str, ...] = knob(
        (),
        why="patterns of tensors that each hospital trains for itself, such as decoder_* or *norm* (FedBN, Li et al. 2021, "
        "arXiv 2102.07623); in the global model, and in what is exported of it, they stay as they began",
    )

    secure: Secure | None = knob(None, why="the server learns the sum of updates alone; none lets it see each")
    privacy: HospitalPrivacy | None = knob(None, why="differential privacy of whole hospitals; none promises nothing")

    @property
    def is_exact(self) -> bool:
        """Whether updates may not be rounded on their way."""
        return self.secure is not None or self.privacy is not None or self.scaffold

    def is_local(self, name: str) -> bool:
        """Whether a tensor of that name stays in the hospital; `*` stands for any text."""
        return any(fnmatchcase(name, pattern) for pattern in self.keep_local)

    def check_scaffold(self, weighting: str, packing: str) -> None:
        """SettingsError where SCAFFOLD is asked for with what its control variates do not go with."""
        if not self.scaffold:
            return
        problems = {
            "federation.weighting: expected uniform, since the variates are averaged alike": weighting != "uniform"
            and weighting,
            "aggregation.rule: expected mean, since variates are a sum of changes": self.rule.kind != "mean"
            and self.rule.kind,
            "aggregation.mixing: expected 0, which begins elsewhere than the variates reckon with": self.mixing,
            "transport.update: expected all numbers, since variates that wait correct nothing": packing == "topk"
            and packing,
            "aggregation.secure: expected none, whose span is that of updates": self.secure is not None and "it set",
            "aggregation.privacy: expected none, which clips updates alone": self.privacy is not None and "it set",
        }
        for expected, found in problems.items():
            if found:
                raise SettingsError(f"{expected}, where aggregation.scaffold is true; found {found}")

    def check_packing(self, packing: str, cosine: float | None) -> None:
        """SettingsError where updates are judged by numbers that most hospitals leave out of what they send.

        cosine: the plan's federation.cosine. Only what is linear in the updates makes up for it later, when the numbers come.
        """
        if packing != "topk":
            return
        judged = ""
        if isinstance(self.rule, Median | TrimmedMean):
            judged = f"aggregation.rule {self.rule.kind}, which takes most of those that topk sends for outliers"
        elif isinstance(self.rule, Krum | GeometricMedian):
            judged = f"aggregation.rule {self.rule.kind}, since those that topk sends overlap little and honest updates lie far apart"
        elif cosine is not None:
            judged = "federation.cosine, since those that topk sends overlap little and honest updates have no direction in common"
        if judged:
            raise SettingsError(f"transport.update: expected all numbers for {judged}; found topk")

    def check_quorum(self, quorum: int) -> None:
        """SettingsError where a round of the fewest replies that count would be too small for the rule."""
        if quorum < self.rule.least:
            raise SettingsError(
                f"federation.quorum: expected at least {self.rule.least} for aggregation.rule {self.rule.kind}, found {quorum}"
            )
